"""Streams of any kind, passed on message by message.

Each direction awaits its write before its next read, so a slow reader on one side slows the writer
on the other and the router holds one message a direction. Half-close, the backend's initial
metadata and its status travel as soon as they come.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from aiflow_router.forwarding import failure as failures
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.metadata import Pair, back
from aiflow_router.forwarding.sender import Sender
from aiflow_router.forwarding.unbroken import unbroken
from aiflow_router.forwarding.written import written
from aiflow_router.tasks import moment

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only
HALF_CLOSE_AFTER_S = 0.001
# gRPC tells the end of an answer that is trailers only a moment after its metadata, of which such
# an answer has none: so metadata that is empty goes on when nothing came for so long.
HEADERS_AFTER_S = 0.001

Take = Callable[[bytes], bytes]


async def forward_stream(  # noqa: C901, PLR0915 - one try, and every way out of it
    sender: Sender,
    call: Call,
    context: Context,
    *,
    first: bytes | None,
    take: Take,
    answer_within_s: float | None = None,
) -> list[Pair]:
    """Passes the call through to its end; the answer is what belongs into the trailing metadata.

    `first` is the caller's first message where it was already read; `take` makes of a further one
    what is passed on, and raises an AiflowError for one that must not be. `answer_within_s` bounds
    the time from the caller's half-close to the backend's first message.

    Raises AioRpcError with the backend's own status, or an AiflowError.
    """
    link = await sender.acquire(call)
    call.sent = True
    sent_s = sender.clock()
    outcome = "CANCELLED"
    try:
        rpc = link.stream(call.method)(timeout=call.left_s(sent_s), metadata=call.onward)
    except BaseException:
        sender.release(call, link, outcome=outcome)
        raise
    patience = _Patience(rpc, call, answer_within_s)
    clock = sender.clock if call.plan.memory.timed else None
    up = _Upstream(context, rpc, first=first, take=take, patience=patience, clock=clock)
    pump = asyncio.create_task(up.run())
    received = received_bytes = 0
    reading: asyncio.Task[Any] | None = None
    try:
        initial = back(await rpc.initial_metadata())
        reading = asyncio.create_task(unbroken(rpc.read()))
        if not call.begun:
            await _begin(context, initial, reading)
        message = await reading
        while message is not grpc.aio.EOF:
            received += 1
            received_bytes += len(message)
            if clock is not None and received == 1:  # Now, for the stream may live for hours.
                sender.answered(call, "OK", took_s=up.waited_s(clock()))
            patience.answered()
            await context.write(message)
            message = await unbroken(rpc.read())
        outcome = "OK"
        late = initial if call.begun else ()
        return [*late, *back(await rpc.trailing_metadata())]
    except grpc.aio.AioRpcError as failure:
        outcome = failures.outcome(failure, call, now_s=sender.clock())
        lost = await sender.lost(call, link, failure)
        if lost and received and not failures.has_details(failure):
            raise failures.stream_broken(call) from failure
        raise failures.explained(
            failure, call, lost=lost, now_s=sender.clock(), limit_bytes=sender.limit_bytes
        ) from failure
    except KeyError as failure:
        outcome = "UNKNOWN"
        raise failures.unheard_of_status(call, failure) from failure
    except asyncio.CancelledError:
        # The pump cancels the backend's call when it refuses a message; that is no cancellation
        # of this task.
        if up.refusal is not None:
            outcome = "REFUSED"
            raise up.refusal from None
        if patience.ended is not None:
            outcome = "ROUTE_TIMEOUT"
            raise patience.ended from None
        raise
    finally:
        patience.answered()
        now_s = sender.clock()
        call.backend_s += now_s - sent_s
        call.streamed_bytes += received_bytes + up.sent_bytes
        call.answers += received
        took_s = 0.0 if received else up.waited_s(now_s)
        measured = received and outcome == "OK"
        sender.release(call, link, outcome=outcome, took_s=None if measured else took_s)
        rpc.cancel()
        pump.cancel()
        if reading is not None:
            reading.cancel()


async def _begin(context: Context, initial: list[Pair], reading: asyncio.Task[Any]) -> None:
    """Sends the metadata, unless a message is there that brings it, or the end of trailers only."""
    if not initial:
        await moment(HEADERS_AFTER_S, unless=reading)
    if initial or not reading.done():
        await context.send_initial_metadata(tuple(initial))


class _Patience:
    """Ends the backend's call when its first message does not come in time."""

    def __init__(
        self, rpc: grpc.aio.StreamStreamCall[bytes, bytes], call: Call, within_s: float | None
    ) -> None:
        self._rpc = rpc
        self._call = call
        self._within_s = within_s
        self._timer: asyncio.TimerHandle | None = None
        self.ended: Exception | None = None

    def asked(self) -> None:
        """The whole request is sent: from here on the answer is waited for."""
        if self._within_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._within_s, self._end)

    def answered(self) -> None:
        self._within_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self.ended = failures.deadline_exceeded(self._call)
        self._rpc.cancel()


class _Upstream:
    """The caller's messages on their way to the backend."""

    def __init__(
        self,
        context: Context,
        rpc: grpc.aio.StreamStreamCall[bytes, bytes],
        *,
        first: bytes | None,
        take: Take,
        patience: _Patience,
        clock: Callable[[], float] | None,
    ) -> None:
        self._context = context
        self._rpc = rpc
        self._first = first
        self._take = take
        self._patience = patience
        self._clock = clock
        self._sent_s = math.inf
        self.refusal: Exception | None = None
        self.sent_bytes = 0

    def waited_s(self, now_s: float) -> float:
        """Time since the last message went to the backend; 0 where none did or none is timed."""
        return max(0.0, now_s - self._sent_s)

    async def _write(self, message: bytes) -> bool:
        """Whether it was sent: if not then the call is over, as the reader is told."""
        if not await written(self._rpc, message):
            return False
        self.sent_bytes += len(message)
        if self._clock is not None:
            self._sent_s = self._clock()
        return True

    async def run(self) -> None:
        try:
            if self._first is not None and not await self._write(self._first):
                return
            while (message := await unbroken(self._context.read())) is not grpc.aio.EOF:
                if not await self._write(self._take(message)):
                    return
            # A caller that goes away ends its messages too, and only a moment later is this task
            # cancelled. The backend must not take that for a finished upload.
            await moment(HALF_CLOSE_AFTER_S)
            await self._rpc.done_writing()
            self._patience.asked()
        except grpc.aio.BaseError:
            # One of the calls ended while the caller was still sending: the reader is told why.
            return
        except Exception as refusal:  # noqa: BLE001 - raised by the reader, whom this wakes
            self.refusal = refusal
            self._rpc.cancel()
