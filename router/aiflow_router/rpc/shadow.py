"""Copies of calls for another model: what it would have answered, counted and never felt.

A copy is a task beside the call, with a deadline of its own. It goes in at the other model's gate
only where there is room, is sent once, and is itself neither copied nor kept. What is counted:

same, different     both answered; by the bytes beside model name, model version and id
error, better       only the call was answered; only the copy
both_failed
unpaired            the caller went away, or another model answered it
no_target           nothing serves the other model
dropped             there were too many copies already, or too many calls at the other model
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace

import grpc.aio
import structlog

from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.fields import without
from aiflow_router.forwarding.metadata import PRIORITY, SHADOW, Pairs
from aiflow_router.forwarding.sender import Sender, never
from aiflow_router.forwarding.unary import Answer
from aiflow_router.limits.concurrency import End
from aiflow_router.routing.name import renamed
from aiflow_router.routing.shadow import ShadowRule
from aiflow_router.routing.table import GatedPlan, Table
from aiflow_router.rpc.turn import how_it_ended
from aiflow_router.telemetry.metrics import Metrics
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

# Of ModelInferResponse: model_name, model_version, id.
_WHO_ANSWERED = frozenset({1, 2, 3})


@dataclass(slots=True, eq=False)
class _Real:
    """What became of the call that was copied.

    Attributes:
        answer: None where it has none that can be compared.
        failed: the call's own end, unless its caller ended it.
    """

    answer: bytes | None = None
    took_s: float = 0.0
    failed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """All that a copy takes along, and nothing by which the call could be reached."""

    model: str
    rule: ShadowRule
    method: str
    request: bytes
    onward: Pairs


class Shadows:
    """Lives in one event loop."""

    def __init__(
        self,
        *,
        table: Table,
        sender: Sender,
        metrics: Metrics,
        rng: random.Random | None = None,
    ) -> None:
        self._table = table
        self._sender = sender
        self._clock = sender.clock
        self._metrics = metrics
        self._rng = rng or random.Random()  # noqa: S311 - chooses a sample, guards nothing
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[str] = Counter()

    async def beside(
        self, sent: Awaitable[Answer], call: Call, rule: ShadowRule, request: bytes
    ) -> Answer:
        """Awaits `sent`, the answer to the call; of some calls a copy is sent meanwhile."""
        real = self._begun(call, rule, request)
        if real is None:
            return await sent
        name = call.plan.name
        try:
            answer = await sent
        except Exception:
            real.failed = True
            raise
        else:
            if call.plan.name == name:
                real.answer = answer.message
            return answer
        finally:
            real.took_s = call.backend_s
            real.ended.set()

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begun(self, call: Call, rule: ShadowRule, request: bytes) -> _Real | None:
        if self._rng.random() >= rule.share:
            return None
        model = call.plan.name
        if self._under_way[model] >= rule.max_in_flight:
            self._metrics.shadowed(model, rule.to, "dropped")()
            return None
        copy = _Copy(
            model=model, rule=rule, method=call.method, request=request, onward=call.onward
        )
        real = _Real()
        self._under_way[model] += 1
        task = asyncio.create_task(self._run(copy, real))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, model))
        return real

    def _ended(self, task: asyncio.Task[None], model: str) -> None:
        self._tasks.discard(task)
        self._under_way[model] -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a copied call failed in the router itself", model=model, exc_info=error)

    async def _run(self, copy: _Copy, real: _Real) -> None:
        plan = self._table.planned(copy.rule.to)
        if plan is None:
            outcome = "no_target"
        elif not plan.gates.unary.try_enter():
            outcome = "dropped"
        else:
            outcome = await self._sent(copy, plan, real)
        self._metrics.shadowed(copy.model, copy.rule.to, outcome)()

    async def _sent(self, copy: _Copy, plan: GatedPlan, real: _Real) -> str:
        """Sends it, from inside the gate; the outcome."""
        once = replace(plan, retry=replace(plan.retry, attempts=1), hedge=None)
        call = Call(
            method=copy.method,
            plan=once,
            onward=_of_a_copy(copy.onward),
            deadline_s=self._clock() + plan.timeout_s,
            timed_here=True,
        )
        answer: bytes | None = None
        end = End.OTHER
        try:
            request = renamed(copy.request, plan.name)
            answer = (await self._sender.unary(call, request, may_repeat=never)).message
            end = End.ANSWERED
        except (grpc.aio.AioRpcError, errors.AiflowError) as error:
            end = how_it_ended(error, deadline_s=call.deadline_s, now_s=self._clock())
        finally:
            plan.gates.unary.leave(end, call.backend_s, self._clock())
        await real.ended.wait()
        if answer is not None and real.answer is not None:
            for side, took_s in (("real", real.took_s), ("copy", call.backend_s)):
                self._metrics.shadow_s(copy.model, copy.rule.to, side)(took_s)
        return outcome_of(real.answer, answer, failed=real.failed)


def outcome_of(real: bytes | None, copy: bytes | None, *, failed: bool) -> str:
    """What two answers come to, None where there is none; `failed` says that the call did."""
    if real is not None:
        if copy is None:
            return "error"
        return "same" if _said(real) == _said(copy) else "different"
    if not failed:
        return "unpaired"
    return "both_failed" if copy is None else "better"


def _said(answer: bytes) -> bytes:
    """The answer without what says who gave it; all of it where it is none of the protocol."""
    try:
        return without(answer, _WHO_ANSWERED)
    except ValueError:
        return answer


def _of_a_copy(onward: Pairs) -> Pairs:
    """The call's metadata for its copy, by which a server can tell that it is one."""
    return (
        *(pair for pair in onward if pair[0] != PRIORITY),
        (PRIORITY, "low"),
        (SHADOW, "true"),
    )
