"""Active health checks by grpc.health.v1 of the endpoints in use.

An endpoint is in use from its first call until it had none for a minute, and as long as it is out.
It is checked when its use begins, and then watched where it offers Watch, else checked at every
interval. In between it is looked at when there is doubt: it refused or lost a connection (again
and again until it is back), or its calls in flight bring no answer. Idle endpoints, of which there
may be thousands, cost nothing.

What an endpoint does not offer it is not blamed for (gRFC A17): UNIMPLEMENTED, and any other
refusal of the check itself, is an answer, so whoever gave it is alive, and is left in peace.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.verdict import HealthPolicy, Verdict
from aiflow_router.forwarding.link import Link, Links
from aiflow_router.forwarding.written import asked

_log = structlog.get_logger(__name__)

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
_REQUEST = health_pb2.HealthCheckRequest().SerializeToString()

TICK_S = 0.2
LOOK_EVERY_S = 1.0
# Half a millisecond's work.
LOOKED_AT_ONCE = 500
IDLE_AFTER_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
CHECKS_AT_ONCE = 64
DROPS_WITHIN_S = 0.1
NEVER_S = float("inf")

Result = Literal["serving", "not_serving", "not_offered", "no_answer", "unreachable"]

_SAID: dict[int, Result] = {
    health_pb2.HealthCheckResponse.SERVING: "serving",
    # It has no word on itself as a whole, only on single services.
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN: "not_offered",
}
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class _Judged(Protocol):
    """Whom verdicts are about: a load, or in shadow its stand-in."""

    @property
    def refusals(self) -> int: ...

    @property
    def unhealthy(self) -> str: ...

    def unreachable(self, *, until_s: float) -> None: ...

    def connected(self) -> None: ...

    def fails(self, why: str) -> None: ...

    def passes(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class StandIn:
    """Takes verdicts for a load, which stays in; `count` is told of each that would take it out."""

    count: Callable[[str], None]
    refusals: int = 0
    unhealthy: str = ""

    def unreachable(self, *, until_s: float) -> None:  # noqa: ARG002 - as of a load
        if not self.refusals:
            self.refusals = 1
            self.count("unreachable")

    def connected(self) -> None:
        self.refusals = 0

    def fails(self, why: str) -> None:
        if not self.unhealthy:
            self.unhealthy = why
            self.count("unhealthy")

    def passes(self) -> None:
        self.unhealthy = ""


@dataclass(slots=True, kw_only=True, eq=False)
class _Watched:
    """An endpoint in use.

    Attributes:
        judged: who takes the verdicts on it.
        due_s: when it is checked next, unless it tells by itself; `NEVER_S` while it can.
        polled: it does not offer Watch.
        pause_s: before the next look at one that is out.
        answers: that had come when it was last looked at.
        used_s: when a call was last seen.
    """

    load: Load
    judged: _Judged
    used_s: float
    answers: int
    verdict: Verdict = field(default_factory=Verdict)
    due_s: float = NEVER_S
    checked_s: float = float("-inf")
    pause_s: float = FIRST_PAUSE_S
    polled: bool = False
    checking: asyncio.Task[None] | None = None
    watching: asyncio.Task[None] | None = None


class HealthChecks:
    """Keeps endpoints out that cannot take calls. Lives in one event loop.

    Args:
        count: told the backend and the result of each check.
        count_shadow: told the backend and the reason each time that an endpoint would go out, where
            the policy is in shadow.
    """

    def __init__(
        self,
        policy: HealthPolicy,
        *,
        links: Links,
        loads: Loads,
        count: Callable[[str, Result], None],
        count_shadow: Callable[[str, str], None],
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._links = links
        self._loads = loads
        self._count = count
        self._count_shadow = count_shadow
        self._clock = loads.changes.clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._sleep = sleep
        self._watched: dict[Load, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that are due some time, and those that are being checked.
        self._waiting: set[_Watched] = set()
        self._checking: set[_Watched] = set()
        # An endpoint that is out is looked at again before this is over.
        self._hold_s = 2 * policy.timeout_s + 2 * LONGEST_PAUSE_S
        loads.changes.on_doubt = self.doubt

    async def run(self) -> None:
        """Looks after the endpoints until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look_around())
                group.create_task(self._start_checks())
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def doubt(self, load: Load) -> None:
        """Checks the endpoint at once."""
        now_s = self._clock()
        self._set_due(self._one(load, now_s), now_s)

    def _one(self, load: Load, now_s: float) -> _Watched:
        one = self._watched.get(load)
        if one is None:
            one = _Watched(
                load=load, judged=self._judged(load), used_s=now_s, answers=_answers(load)
            )
            self._watched[load] = one
            self._set_due(one, now_s)
        return one

    def _judged(self, load: Load) -> _Judged:
        if not self._policy.shadow:
            return load
        backend = load.endpoint.backend
        return StandIn(count=lambda reason: self._count_shadow(backend, reason))

    def _set_due(self, one: _Watched, due_s: float) -> None:
        one.due_s = due_s
        if due_s == NEVER_S:
            self._waiting.discard(one)
        else:
            self._waiting.add(one)

    async def _look_around(self) -> None:
        """Sees who is in use, in pieces, so that ten thousand do not hold the event loop."""
        while True:
            await self._sleep(LOOK_EVERY_S)
            for number, load in enumerate(list(self._loads)):
                if number % LOOKED_AT_ONCE == 0:
                    await self._sleep(0)
                if load.calls or load.inflight:
                    now_s = self._clock()
                    self._look(self._one(load, now_s), now_s)
            for number, one in enumerate(list(self._watched.values())):
                if number % LOOKED_AT_ONCE == 0:
                    await self._sleep(0)
                if one.load not in self._loads:
                    self._rest(one)
                    del self._watched[one.load]

    async def _start_checks(self) -> None:
        while True:
            await self._sleep(TICK_S)
            now_s = self._clock()
            for one in [one for one in self._waiting if now_s >= one.due_s]:
                if len(self._checking) >= CHECKS_AT_ONCE:
                    break
                if one not in self._checking and one.load in self._loads:
                    self._checking.add(one)
                    one.checking = self._start(self._check(one))
                    one.checking.add_done_callback(partial(self._checked, one))

    def _checked(self, one: _Watched, _: object) -> None:
        self._checking.discard(one)

    def _look(self, one: _Watched, now_s: float) -> None:
        """Whether it is in use, and whether its calls get answers."""
        load = one.load
        before, one.answers = one.answers, _answers(load)
        if one.answers != before or load.inflight:
            silent = one.answers == before and now_s >= one.checked_s + self._policy.interval_s
            if silent or now_s > one.used_s + IDLE_AFTER_S:
                self._set_due(one, min(one.due_s, now_s))
            one.used_s = now_s
        elif now_s > one.used_s + IDLE_AFTER_S and load.fit(now_s):
            self._rest(one)

    def _rest(self, one: _Watched) -> None:
        self._set_due(one, NEVER_S)
        one.polled = False
        for task in (one.checking, one.watching):
            if task is not None:
                task.cancel()

    async def _check(self, one: _Watched) -> None:
        link = self._links[one.load.endpoint.address]
        link.calls += 1
        try:
            if link.ready() or await link.connect(timeout_s=self._policy.timeout_s):
                result = await self._ask(link)
                offered = result in ("serving", "not_serving")
                if offered and _idle(one.watching) and not one.polled:
                    one.watching = self._start(self._watch(one, link))
            else:
                result, one.polled = "unreachable", False
        finally:
            link.call_ended()
        self._heard(one, result)

    async def _ask(self, link: Link) -> Result:
        # On the wire a unary call is a stream of one message each way.
        rpc = link.stream(CHECK)(timeout=self._policy.timeout_s)
        try:
            await asked(rpc, _REQUEST)
            return _said(await rpc.read())
        except grpc.aio.AioRpcError as failure:
            return "no_answer" if failure.code() in _NO_ANSWER else "not_offered"
        finally:
            rpc.cancel()

    async def _watch(self, one: _Watched, link: Link) -> None:
        """Hears of changes until the endpoint or its connection ends that."""
        link.calls += 1
        rpc = link.stream(WATCH)()
        try:
            await asked(rpc, _REQUEST)
            while (message := await rpc.read()) is not grpc.aio.EOF:
                self._heard(one, _said(message))
        except grpc.aio.AioRpcError:
            pass  # What is next depends only on whether there is still a connection.
        finally:
            rpc.cancel()
            link.call_ended()
        # A call may hear of a broken connection before its channel does.
        one.polled = not await link.drops(within_s=DROPS_WITHIN_S)
        self._set_due(one, self._clock() + (self._policy.interval_s if one.polled else 0.0))

    def _heard(self, one: _Watched, result: Result) -> None:
        judged, policy = one.judged, self._policy
        self._count(one.load.endpoint.backend, result)
        now_s = one.checked_s = self._clock()
        if result == "unreachable" or (result == "no_answer" and judged.refusals):
            judged.unreachable(until_s=now_s + self._hold_s)
            self._again(one, now_s)
            return
        if result == "not_serving":
            one.verdict = Verdict.refusing(policy)
        else:
            one.verdict = one.verdict.after(passed=result != "no_answer", policy=policy)
        if result != "no_answer":
            judged.connected()
        if one.verdict.healthy:
            judged.passes()
            one.pause_s = FIRST_PAUSE_S
            # Who tells by itself, or has nothing to tell, is asked again only in doubt.
            told = result == "not_offered" or not _idle(one.watching)
            rests = told and not one.verdict.against
            self._set_due(one, NEVER_S if rests else now_s + self._until_next_s(one))
        else:
            if result == "not_serving":
                judged.fails("it says NOT_SERVING")
            elif not judged.unhealthy:
                judged.fails(f"no answer to health checks within {policy.timeout_s:g} s")
            self._again(one, now_s)

    def _until_next_s(self, one: _Watched) -> float:
        if one.verdict.against:
            return 0.0
        return self._policy.interval_s * self._rng.uniform(0.9, 1.0)

    def _again(self, one: _Watched, now_s: float) -> None:
        self._set_due(one, now_s + one.pause_s * self._rng.uniform(0.5, 1.0))
        one.pause_s = min(2 * one.pause_s, LONGEST_PAUSE_S)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a health check failed in the router itself", exc_info=error)


def _answers(load: Load) -> int:
    return load.calls - load.faults


def _idle(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()


def _said(message: object) -> Result:
    """What a message of Check or Watch says; one that cannot be read says nothing of health."""
    if not isinstance(message, bytes):
        return "no_answer"
    try:
        status = health_pb2.HealthCheckResponse.FromString(message).status
    except DecodeError:
        return "not_offered"
    return _SAID.get(status, "not_serving")
