"""Where every call comes in and goes out, whatever it is: the one place that ends it.

Every way out of a handler passes through here: the outcome is counted and logged exactly once, also
when the caller cancels.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import structlog

from aiflow_router.accounts.account import written
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.deadline import cut_off, passed_on_s
from aiflow_router.forwarding.failure import too_large
from aiflow_router.forwarding.metadata import CREDITS, PRIORITY, USED, Pair, back, read_head
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.sender import MayRepeat, Sender
from aiflow_router.forwarding.unary import Answer
from aiflow_router.identity.caller import ANONYMOUS, Needs
from aiflow_router.identity.keys import Keys
from aiflow_router.limits import units
from aiflow_router.limits.concurrency import End
from aiflow_router.limits.gate import Gate
from aiflow_router.routing.table import GatedPlan, Table
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.shadow import Shadows
from aiflow_router.rpc.streams import Streams
from aiflow_router.rpc.turn import how_it_ended, take_turn
from aiflow_router.rpc.uploads import WITHIN_S as UPLOAD_WITHIN_S
from aiflow_router.rpc.uploads import Uploads
from aiflow_router.rpc.visit import ARRIVING, Context, Visit
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import UNKNOWN, Metrics
from aiflow_sdk import errors, status

_log = structlog.get_logger(__name__)

Unary = Callable[[Visit, bytes, Context], Awaitable[bytes]]
Stream = Callable[[Visit, Context], Awaitable[Iterable[Pair]]]


class Front:
    """Where calls come in and go out.

    Attributes:
        leaving: shutdown has begun; calls are still taken.
        draining: new calls are refused.
        active: calls that have not ended.
        admission: where they are let in; not asked where `admission.limited` is not set.
        uploads: requests of unary calls that are still coming in.
        streams: those under way.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        admission: Admission,
        table: Table,
        sender: Sender,
        shadows: Shadows,
        metrics: Metrics,
        journal: Journal,
        limit_bytes: int,
    ) -> None:
        self.admission = admission
        self.table = table
        self.sender = sender
        self.shadows = shadows
        self.limit_bytes = limit_bytes
        self.leaving = False
        self.draining = False
        self.active = 0
        self.uploads = Uploads(clock=sender.clock, within_s=UPLOAD_WITHIN_S)
        self.streams = Streams()
        self._keys = keys
        self.metrics = metrics
        self._journal = journal
        self._clock = sender.clock
        self._one_left = asyncio.Event()

    def unary(
        self,
        method: str,
        work: Unary,
        *,
        right: Needs = "call",
        label: str = UNKNOWN,
        quiet: bool = False,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def handle(_: object, context: Context) -> bytes | None:
            visit = Visit(
                method=method, started_s=self._clock(), label=label, quiet=quiet, unary=True
            )
            self.active += 1
            try:
                # First, so that what a stranger sends is not even unpacked.
                self._enter(visit, right)
                request = await self.uploads.receive(context, since_s=visit.started_s)
                visit.started_s = self._clock()
                self.check_size(request)
                visit.message_bytes = len(request)
                response = await work(visit, request, context)
                visit.message_bytes += len(response)
                if visit.bill is not None:
                    await self.admission.payments.pay(visit)
                    context.set_trailing_metadata(
                        (*context.trailing_metadata(), (CREDITS, written(visit.credits)))
                    )
            except Exception as error:  # noqa: BLE001 - all of them are told
                await self._failed(visit, context, error, unary=True)
                return None
            except BaseException:
                self._gone(visit, context, unary=True)
                raise
            else:
                self._ended(visit, "OK", unary=True)
                return response
            finally:
                self._left()

        # As a unary one it would never be called, nor answered, where the message does not come.
        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(
        self,
        method: str,
        work: Stream,
        *,
        right: Needs = "call",
        label: str = UNKNOWN,
        quiet: bool = False,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """For a call of any kind: seen as messages, all four look alike."""

        async def handle(_: object, context: Context) -> None:
            visit = Visit(method=method, started_s=self._clock(), label=label, quiet=quiet)
            self.active += 1
            try:
                self._enter(visit, right)
                on_its_way = work(visit, context)
                trailing = await self.streams.run(visit.head.key, visit.caller, on_its_way)
                if trailing:
                    _note_used(visit, trailing)
                if visit.bill is not None:
                    await self.admission.payments.pay(visit)
                context.set_trailing_metadata(visit.trailers(trailing))
            except Exception as error:  # noqa: BLE001 - all of them are told
                await self._failed(visit, context, error, unary=False)
            except BaseException:
                self._gone(visit, context, unary=False)
                raise
            else:
                self._ended(visit, "OK", unary=False)
            finally:
                self._left()

        return grpc.stream_stream_rpc_method_handler(handle)

    async def idle(self) -> None:
        """Returns when no call is left."""
        while self.active:
            self._one_left.clear()
            await self._one_left.wait()

    def check_size(self, message: bytes) -> bytes:
        """The message. Raises MessageTooLargeError.

        The transport's own limit is twice as high, so that this error can say what the limit is
        and where it is set.
        """
        if len(message) > self.limit_bytes:
            raise too_large("the message", len(message), limit_bytes=self.limit_bytes)
        return message

    async def forward(
        self,
        visit: Visit,
        plan: Plan,
        request: bytes,
        context: Context,
        *,
        may_repeat: MayRepeat,
        gate: Gate | None = None,
    ) -> bytes:
        """Passes a unary call on, through `gate` if there is one; the answer.

        Raises AioRpcError, AiflowError.
        """
        call = self.call(visit, plan, context, timeout_s=plan.timeout_s)
        answer = await self.send(visit, call, request, may_repeat=may_repeat, gate=gate)
        return await self.reply(visit, context, answer)

    async def send(
        self, visit: Visit, call: Call, request: bytes, *, may_repeat: MayRepeat, gate: Gate | None
    ) -> Answer:
        """Passes `call` on, through `gate` if there is one. Raises AioRpcError, AiflowError."""
        if gate is None:
            return await self.sender.unary(call, request, may_repeat=may_repeat)
        if not gate.try_enter():
            await self._turn(visit, gate, call, patience_s=math.inf)
        try:
            answer = await self.sender.unary(call, request, may_repeat=may_repeat)
        except BaseException as error:
            now_s = self._clock()
            end = how_it_ended(error, deadline_s=call.deadline_s, now_s=now_s)
            gate.leave(end, call.backend_s, now_s)
            raise
        gate.leave(End.ANSWERED, call.backend_s, self._clock())
        return answer

    async def reply(self, visit: Visit, context: Context, answer: Answer) -> bytes:
        """The message for the caller, whom the metadata is told."""
        trailing = back(answer.trailing) if answer.trailing else []
        if answer.initial and (initial := back(answer.initial)):
            if visit.line is None:
                await context.send_initial_metadata(tuple(initial))
            else:  # It was sent when the call began to wait.
                trailing = [*initial, *trailing]
        if trailing:
            if visit.kept_by:  # This call took nothing.
                trailing = [pair for pair in trailing if pair[0] != USED]
            _note_used(visit, trailing)
        context.set_trailing_metadata(visit.trailers(trailing))
        return answer.message

    @asynccontextmanager
    async def place(self, visit: Visit, plan: GatedPlan) -> AsyncIterator[None]:
        """A stream's place inside its gate. Raises as `take_turn`."""
        gate, call = plan.gates.stream, visit.call
        assert call is not None  # noqa: S101 - made before it is let in
        if not gate.try_enter():
            await self._turn(visit, gate, call, patience_s=plan.timeout_s)
        try:
            yield
        finally:
            gate.leave(End.OTHER, 0.0, self._clock())

    async def _turn(self, visit: Visit, gate: Gate, call: Call, *, patience_s: float) -> None:
        priority = next((str(value) for name, value in call.onward if name == PRIORITY), "")
        joined_s = self._clock()
        try:
            waited_s = await take_turn(
                gate,
                call.plan.name,
                caller=visit.caller,
                priority=priority,
                deadline_s=call.deadline_s,
                patience_s=patience_s,
                clock=self._clock,
            )
        except BaseException as error:
            visit.queued_s = self._clock() - joined_s
            if isinstance(error, errors.AiflowError):
                visit.call = None  # It went nowhere: the router answers.
            raise
        if waited_s:
            visit.queued_s += waited_s
            self.metrics.queue_wait(call.plan.name)(waited_s)

    def call(
        self, visit: Visit, plan: Plan, context: Context, *, timeout_s: float = math.inf
    ) -> Call:
        """The visit's call by its plan, due in `timeout_s` or when the caller says, if earlier."""
        left_s = context.time_remaining()
        timed_here = left_s is None or left_s >= timeout_s
        if left_s is not None and not timed_here:
            timeout_s = passed_on_s(left_s)
        visit.label = visit.asked = plan.name
        visit.policy = self.table.stamp
        visit.call = Call(
            method=visit.method,
            plan=plan,
            onward=visit.head.onward,
            deadline_s=self._clock() + timeout_s,
            timed_here=timed_here,
            begun=visit.line is not None,
        )
        return visit.call

    def _enter(self, visit: Visit, right: Needs) -> None:
        visit.policy = self.table.stamp
        visit.head = read_head(ARRIVING.get())
        if right == "nothing":  # Not even a look at the key: it may be an old one.
            visit.caller = ANONYMOUS
        else:
            caller = visit.caller = self._keys.identify(visit.head.key, right)
            if caller.scope is not None:
                caller.scope.check_method(visit.method, caller.key)
        if self.draining:
            raise errors.DrainingError(
                "this router is shutting down: call another one, or try again shortly",
                retry_after_s=1.0,
            )

    def _gone(self, visit: Visit, context: Context, *, unary: bool) -> None:
        """Counts a cancellation, by the caller or because its deadline passed."""
        left_s, now_s = context.time_remaining(), self._clock()
        late = left_s is not None and cut_off(now_s + left_s, since_s=visit.started_s, now_s=now_s)
        self._ended(visit, "DEADLINE_EXCEEDED" if late else "CANCELLED", unary=unary)

    async def _failed(
        self, visit: Visit, context: Context, error: Exception, *, unary: bool
    ) -> None:
        """Counts the failure and tells the caller."""
        try:
            await self._tell(visit, context, error, unary=unary)
        finally:
            # The functions that it rose through keep it in their variables, as it keeps them.
            error.__traceback__ = None

    async def _tell(self, visit: Visit, context: Context, error: Exception, *, unary: bool) -> None:
        if isinstance(error, grpc.aio.InternalError):
            # Nothing can be sent any more: the caller has gone, and the cancellation is on its way.
            self._ended(visit, "CANCELLED", unary=unary)
            raise asyncio.CancelledError from error
        if isinstance(error, grpc.aio.AioRpcError):
            told = back(error.trailing_metadata() or ())
            _note_used(visit, told)
            self._ended(visit, error.code().name, reason="BACKEND_STATUS", unary=unary)
            initial = back(error.initial_metadata() or ()) if unary else ()
            if initial and visit.line is None:
                await context.send_initial_metadata(tuple(initial))
            trailing = visit.trailers(told)
            await _refuse(context, error.code(), error.details() or "", trailing)
        else:
            known = error
            if not isinstance(known, errors.AiflowError):
                _log.error(
                    "the router failed",
                    method=visit.method,
                    request_id=visit.head.request_id,
                    exc_info=error,
                )
                known = errors.AiflowError(
                    "the router failed to handle this call; its log says why under this request id",
                    code="INTERNAL",
                    reason="ROUTER_FAULT",
                )
            self._ended(visit, known.code, reason=known.reason, unary=unary)
            trailing = visit.trailers(status.to_trailers(known))
            await _refuse(context, status.status_code(known), known.message, trailing)

    def _left(self) -> None:
        self.active -= 1
        if self.draining:
            self._one_left.set()

    def _ended(self, visit: Visit, code: str, *, unary: bool, reason: str = "") -> None:
        """Notes how the call ended, before its caller can see that it has."""
        visit.ended_s = self._clock()
        visit.code, visit.reason, visit.unary = code, reason, unary
        if visit.permit is not None:
            self.admission.settle(visit)
        if visit.bill is not None:
            self.admission.payments.ended(visit)
        self._journal.ended(visit)


def _note_used(visit: Visit, trailing: Iterable[Pair]) -> None:
    """What the backend says that the call took."""
    for name, value in trailing:
        if name == USED:
            try:
                visit.used = units.read(str(value), units.USABLE)
            except ValueError as error:
                _log.warning(
                    "a backend does not say what a call took in a way that can be read",
                    endpoint=visit.endpoint,
                    request_id=visit.request_id,
                    why=str(error),
                )


async def _refuse(
    context: Context, code: grpc.StatusCode, details: str, trailing: tuple[Pair, ...]
) -> None:
    """Ends the call. The handler is then to return: gRPC knows that no answer follows.

    gRPC keeps the exception by which `abort` ends a handler with the call. Were it to rise, it
    would keep the handler and with it the call in turn; then only the garbage collector could free
    them, and until it does the connection counts the call as open, up to where it takes no more.
    """
    try:
        await context.abort(code, details, trailing)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None
