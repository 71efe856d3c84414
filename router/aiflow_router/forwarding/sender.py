"""Attempts: an endpoint is picked, connected to, and for a unary call sent to and heard.

When another endpoint is tried, at most `retry.attempts` in all:
- no connection could be made: always and at once, because nothing of the call was sent;
- UNAVAILABLE, or no answer within a try's time, to a unary call that may be repeated (reads and
  inference of the Open Inference Protocol outside a sequence; methods whose proto says so): after
  a pause, and only within the retry budget;
- nothing else, ever. In particular no call that other services might have begun to process.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import grpc
import grpc.aio

from aiflow_router.balancing.ejection import Outliers
from aiflow_router.forwarding import failure as failures
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.link import Link, Links
from aiflow_router.forwarding.retry import BUDGET_WAIT_S, backoff_s
from aiflow_router.forwarding.unary import Answer
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import Metrics
from aiflow_sdk import errors

DROPS_WITHIN_S = 0.1

MayRepeat = Callable[[bytes], bool]  # Whether a call with this request can be sent twice.


def always(_request: bytes) -> bool:
    return True


def never(_request: bytes) -> bool:
    return False


def outside_a_sequence(request: bytes) -> bool:
    """Steps of a stateful sequence of the Open Inference Protocol cannot be sent twice.

    Triton's parameter may also occur as mere data; then a safe retry is not made, which is right.
    """
    return b"sequence_" not in request


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """An attempt that was sent and brought no answer.

    Attributes:
        lost: the connection broke under it.
        late: its own time is up, the call's is not.
    """

    error: grpc.aio.AioRpcError
    lost: bool
    late: bool


class Sender:
    def __init__(
        self,
        *,
        links: Links,
        outliers: Outliers,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float],
        limit_bytes: int,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.clock = clock
        self.limit_bytes = limit_bytes
        self._links = links
        self._outliers = outliers
        self._metrics = metrics
        self._journal = journal
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._sleep = sleep

    async def acquire(self, call: Call) -> Link:
        """A connected link to `call.load`, counted as busy until `release`.

        Raises NoEndpointError when there is none left to try, DeadlineExceededError.
        """
        plan = call.plan
        while call.attempts < call.limit:
            now_s = self.clock()
            untried = plan.pool.open(now_s, self._rng, call)
            if not untried:
                break
            load = call.load = plan.pick(untried, self._rng, now_s, call)
            call.attempts += 1
            call.sent_s = now_s
            link = self._links[load.endpoint.address]
            load.inflight += 1
            link.calls += 1
            connected, outcome = False, "CANCELLED"
            try:
                connected = link.ready() or await link.connect(timeout_s=call.left_s(now_s))
                outcome = "UNREACHABLE"
            finally:
                if not connected:
                    self.release(call, link, outcome=outcome, took_s=self.clock() - now_s)
            if connected:
                if load.refusals:
                    load.connected()
                return link
            if self.clock() >= call.deadline_s:
                raise failures.deadline_exceeded(call)
            load.refused(now_s=self.clock())
            call.tried.append(load)
            call.because = "no connection to the one before"
        if plan.retry.shadow:
            self._would_retry(call, "unreachable")
        raise failures.no_endpoint(call)

    def release(self, call: Call, link: Link, *, outcome: str, took_s: float | None = None) -> None:
        """Ends the attempt; `took_s` is how long its answer took, None where that was told."""
        load = call.load
        assert load is not None  # noqa: S101 - acquire set it
        load.inflight -= 1
        link.call_ended()
        if took_s is not None and call.plan.memory.timed:
            self.answered(call, outcome, took_s=took_s)
        if outcome != "OK" or call.notes is not None:
            call.attempted(outcome, self.clock())
        self._outliers.ended(load, outcome)
        self._journal.attempted(load.endpoint.backend, outcome)

    def answered(self, call: Call, outcome: str, *, took_s: float) -> None:
        """Remembers how long the endpoint of this attempt took."""
        if call.load is not None:
            call.plan.memory.answered(call.load, outcome=outcome, took_s=took_s, now_s=self.clock())

    async def lost(self, call: Call, link: Link, failure: grpc.aio.AioRpcError) -> bool:
        """Whether the connection broke; its endpoint is then given a rest.

        The call may hear of it before the channel does, so where the status reads like one that
        gRPC made up the channel is given a moment.
        """
        if failure.code() is not grpc.StatusCode.UNAVAILABLE:
            return False
        wait_s = DROPS_WITHIN_S if failures.reads_like_transport(failure) else 0.0
        if link.ready() and not (wait_s and await link.drops(within_s=wait_s)):
            return False
        if call.load is not None:
            call.load.refused(now_s=self.clock())
        return True

    async def unary(self, call: Call, request: bytes, *, may_repeat: MayRepeat) -> Answer:
        """The answer, of the first endpoint that gives one.

        Raises AioRpcError with the backend's own status, or an AiflowError.
        """
        budget, hedge = call.budget, call.plan.hedge
        budget.active += 1
        try:
            if hedge is None:
                return await self._tried(call, request, may_repeat)
            started_s = self.clock()
            delay_s = hedge.delay_s()
            if delay_s is None or not may_repeat(request):
                answer = await self._tried(call, request, may_repeat)
            elif hedge.shadow:
                answer = await self._would_hedge(call, request, may_repeat, delay_s)
            else:
                answer = await self._hedged(call, request, may_repeat, delay_s)
            hedge.answered(self.clock() - started_s)
            return answer
        finally:
            budget.active -= 1

    async def _hedged(
        self, call: Call, request: bytes, may_repeat: MayRepeat, delay_s: float
    ) -> Answer:
        """As `_tried`, but another endpoint is asked too when no answer came within `delay_s`."""
        plan = call.plan
        started_s = self.clock()
        first = asyncio.create_task(self._tried(call, request, may_repeat))
        second: asyncio.Task[Answer] | None = None
        try:
            await asyncio.wait((first,), timeout=delay_s)
            if first.done() or call.load is None or not self._may_hedge(call):
                return await first
            call.tried.append(call.load)
            call.decided(f"no answer for {delay_s:.3g} s: another one is asked too", self.clock())
            # With the notes of this one: the list is the same.
            other = replace(call, attempts=0, most=1, because="hedge")
            second = asyncio.create_task(self._tried(other, request, may_repeat))
            won = await _first_good(first, second)
        finally:
            for task in (first, second):
                # Also where it has ended: asyncio logs a failure that nobody saw, but not of these.
                if task is not None and task.cancel():
                    await asyncio.wait((task,))
            if second is not None:
                call.budget.give_back()
                call.sent = call.sent or other.sent
            call.backend_s = self.clock() - started_s
        # Not before the first attempt has been released, which is counted by its own endpoint.
        call.attempts += other.attempts
        if won is second:
            call.load = other.load
        self._metrics.hedges(plan.name, "won" if won is second else "lost")()
        return won.result()

    async def _would_hedge(
        self, call: Call, request: bytes, may_repeat: MayRepeat, delay_s: float
    ) -> Answer:
        """As `_tried`; counts a hedge that a policy in shadow does not make."""
        started_s = self.clock()
        try:
            return await self._tried(call, request, may_repeat)
        finally:
            now_s = self.clock()
            if now_s - started_s > delay_s and call.elsewhere(now_s):
                self._metrics.would_hedge(call.plan.name)()

    def _may_hedge(self, call: Call) -> bool:
        if not call.elsewhere(self.clock()):
            return False
        if call.budget.take():
            return True
        self._metrics.hedges(call.plan.name, "over_budget")()
        call.decided("not hedged: the retry budget is used up", self.clock())
        return False

    async def _tried(self, call: Call, request: bytes, may_repeat: MayRepeat) -> Answer:
        """The answer of the first endpoint that gives one, tried one after the other."""
        retry = call.plan.retry
        # A try that nothing may follow has all the time there is.
        bounded = retry.per_try_timeout_s is not None and may_repeat(request)
        retrying = False
        before: Exception | None = None
        try:
            while True:
                try:
                    link = await self.acquire(call)
                except errors.NoEndpointError:
                    if before is not None:
                        raise before from None
                    raise
                answer = await self._attempt(call, link, request, bounded=bounded)
                if isinstance(answer, Answer):
                    return answer
                if retrying:
                    call.budget.give_back()
                    retrying = False
                before = await self._before_retry(call, answer, request, may_repeat)
                retrying = True
        finally:
            if retrying:
                call.budget.give_back()

    async def _attempt(
        self, call: Call, link: Link, request: bytes, *, bounded: bool
    ) -> Answer | _Failed:
        sent_s = self.clock()
        due_s = call.try_due_s(sent_s) if bounded else call.deadline_s
        outcome = "CANCELLED"
        call.sent = True
        try:
            answer = await link.ask(
                call.method,
                request,
                timeout_s=None if due_s == math.inf else due_s - sent_s,
                metadata=call.onward,
            )
        except grpc.aio.AioRpcError as error:
            late = due_s < call.deadline_s and failures.is_late(
                error, due_s=due_s, now_s=self.clock()
            )
            outcome = (
                "PER_TRY_TIMEOUT" if late else failures.outcome(error, call, now_s=self.clock())
            )
            return _Failed(error=error, lost=await self.lost(call, link, error), late=late)
        else:
            outcome = "OK"
            return answer
        finally:
            took_s = self.clock() - sent_s
            call.backend_s += took_s
            if bounded and call.plan.retry.shadow and outcome != "UNAVAILABLE":
                self._would_give_up(call, took_s)
            self.release(call, link, outcome=outcome, took_s=took_s)

    async def _before_retry(
        self, call: Call, failed: _Failed, request: bytes, may_repeat: MayRepeat
    ) -> Exception | None:
        """Returns when another endpoint shall be tried, raises when that was the last attempt.

        Returned is what to raise if no further endpoint is found.
        """
        error, lost = failed.error, failed.lost
        said = failures.explained(
            error, call, lost=lost, now_s=self.clock(), limit_bytes=self.limit_bytes
        )
        if failed.late:
            said = failures.deadline_exceeded(call)
        unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
        if not (unavailable or failed.late) or not may_repeat(request):
            if unavailable or failed.late:
                call.decided("not retried: this call must not be sent twice", self.clock())
            raise said from error
        pause_s = failures.pushback_s(error)
        if pause_s is None:
            # A broken connection says nothing of how busy the others are.
            pause_s = 0.0 if lost else backoff_s(call.attempts, self._rng)
        elif pause_s < 0:
            call.decided("not retried: the backend asks for none, or not so soon", self.clock())
            raise said from error
        if call.load is not None:
            call.tried.append(call.load)
        if call.plan.retry.shadow:
            self._would_retry(call, "unavailable")
        if not call.another():
            call.decided("not retried: no attempt or no endpoint is left", self.clock())
            raise (failures.no_endpoint(call) if lost else said) from error
        if not await self._paused(call, pause_s):
            raise said from error
        call.because = f"retry of {'PER_TRY_TIMEOUT' if failed.late else error.code().name}"
        return None if lost else said

    def _would_retry(self, call: Call, reason: str) -> None:
        """Counts a retry that a policy in shadow does not make, if there is another endpoint."""
        if len(call.tried) < len(call.plan.loads):
            self._metrics.would_retry(call.plan.name, reason)()

    def _would_give_up(self, call: Call, took_s: float) -> None:
        """Counts a try that took longer than a policy in shadow would have let it."""
        limit_s = call.plan.retry.per_try_timeout_s
        if limit_s is not None and took_s > limit_s and call.elsewhere(self.clock()):
            self._metrics.would_retry(call.plan.name, "per_try_timeout")()

    async def _paused(self, call: Call, pause_s: float) -> bool:
        """Waits for `pause_s` and then for a place in the retry budget; whether there is one."""
        give_up_s = min(self.clock() + pause_s + BUDGET_WAIT_S, call.deadline_s)
        waited = False
        while self.clock() + pause_s < give_up_s:
            await self._sleep(pause_s)
            if call.budget.take():
                return True
            # Soon again: what is waited for is a place in here, which burdens no backend.
            waited, pause_s = True, backoff_s(1, self._rng)
        if waited:
            self._metrics.budget_spent(call.plan.name)()
        why = "the retry budget is used up" if waited else "its deadline is too near"
        call.decided(f"not retried: {why}", self.clock())
        return False


async def _first_good(
    first: asyncio.Task[Answer], second: asyncio.Task[Answer]
) -> asyncio.Task[Answer]:
    """The task that answers first; the first one where both fail."""
    done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
    good = next((task for task in done if task.exception() is None), None)
    if good is not None:
        return good
    await asyncio.wait((first, second))
    return second if second.exception() is None else first
