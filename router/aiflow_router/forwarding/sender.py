"""Attempts: an endpoint is picked, connected to, and for a unary call sent to and heard.

When another endpoint is tried, at most `max_attempts` in all:
- no connection could be made: always, because nothing of the call was sent;
- UNAVAILABLE to a unary call that may be repeated (reads and inference of the Open Inference
  Protocol outside a sequence; methods whose proto says so), unless the backend pushed back;
- nothing else, ever. In particular no call that other services might have begun to process.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc
import grpc.aio

from aiflow_router.balancing.pick import candidates
from aiflow_router.forwarding import failure as failures
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.link import Link, Links
from aiflow_router.forwarding.metadata import Pair, back
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


class Sender:
    def __init__(
        self,
        *,
        links: Links,
        metrics: Metrics,
        clock: Callable[[], float],
        limit_bytes: int,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock
        self.limit_bytes = limit_bytes
        self._links = links
        self._attempts = metrics.attempts
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing

    async def acquire(self, call: Call) -> Link:
        """A connected link to `call.load`, counted as busy until `release`.

        Raises NoEndpointError when there is none left to try, DeadlineExceededError.
        """
        while call.attempts < call.max_attempts:
            now_s = self.clock()
            untried = candidates(call.loads, now_s=now_s, tried=call.tried)
            if not untried:
                break
            load = call.load = call.pick(untried, self._rng, now_s, call)
            call.attempts += 1
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
        raise failures.no_endpoint(call)

    def release(self, call: Call, link: Link, *, outcome: str, took_s: float | None = None) -> None:
        """Ends the attempt; `took_s` is how long its answer took, None where that was told."""
        load = call.load
        assert load is not None  # noqa: S101 - acquire set it
        load.inflight -= 1
        link.call_ended()
        if took_s is not None and call.memory.timed:
            self.answered(call, outcome, took_s=took_s)
        self._attempts(load.endpoint.backend, outcome)()

    def answered(self, call: Call, outcome: str, *, took_s: float) -> None:
        """Remembers how long the endpoint of this attempt took."""
        if call.load is not None:
            call.memory.answered(call.load, outcome=outcome, took_s=took_s, now_s=self.clock())

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

    async def unary(
        self, call: Call, request: bytes, *, may_repeat: MayRepeat
    ) -> tuple[bytes, list[Pair], list[Pair]]:
        """The answer, its initial and its trailing metadata.

        Raises AioRpcError with the backend's own status, or an AiflowError.
        """
        own_status: Exception | None = None
        while True:
            try:
                link = await self.acquire(call)
            except errors.NoEndpointError:
                if own_status is not None:
                    raise own_status from None
                raise
            sent_s = self.clock()
            outcome = "CANCELLED"
            rpc = None
            try:
                rpc = link.unary(call.method)(
                    request, timeout=call.left_s(sent_s), metadata=call.onward
                )
                response = await rpc
                outcome = "OK"
                initial = await rpc.initial_metadata()
                trailing = await rpc.trailing_metadata()
                return response, back(initial) if initial else [], back(trailing)
            except grpc.aio.AioRpcError as failure:
                outcome = failure.code().name
                own_status = await self._after(call, link, failure, request, may_repeat)
            finally:
                took_s = self.clock() - sent_s
                call.backend_s += took_s
                self.release(call, link, outcome=outcome, took_s=took_s)
                if rpc is not None:
                    rpc.cancel()  # Does nothing to a call that is done.

    async def _after(
        self,
        call: Call,
        link: Link,
        failure: grpc.aio.AioRpcError,
        request: bytes,
        may_repeat: MayRepeat,
    ) -> Exception | None:
        """Returns when another endpoint shall be tried, raises when this was the last attempt.

        Returned is the backend's own status, to be raised if the next attempt finds no endpoint.
        """
        unavailable = failure.code() is grpc.StatusCode.UNAVAILABLE
        lost = await self.lost(call, link, failure)
        again = unavailable and not failures.forbids_retry(failure) and may_repeat(request)
        if again and call.load is not None:
            call.tried.append(call.load)
            if call.attempts < call.max_attempts and len(call.tried) < len(call.loads):
                return None if lost else failure
            if lost:
                raise failures.no_endpoint(call) from failure
        raise failures.explained(
            failure, call, lost=lost, now_s=self.clock(), limit_bytes=self.limit_bytes
        ) from failure
