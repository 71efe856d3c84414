"""What `_sync_channel` is for `Client`, for `AsyncClient`: the same plans, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
from grpc import aio

from aiflow_sdk._plan import Pair, Plan, Reply, new_plan
from aiflow_sdk._settings import Settings
from aiflow_sdk.errors import CallCancelledError

# What a stub's method takes besides request, timeout and metadata.
Options = Any


class AsyncCallingChannel(aio.Channel):
    """Hands out the callables that a stub is made of. Closing it is the client's business.

    Args:
        channel: gives the connection; asked at each call, because it belongs to a running loop.
    """

    def __init__(
        self, channel: Callable[[], aio.Channel], settings: Settings, *, idempotent: bool
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._idempotent = idempotent

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def made() -> Any:
            return self._channel().unary_unary(method, *args, **kwargs)

        return AsyncUnaryMethod(made, self._settings, method, safe=self._idempotent)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def made() -> Any:
            return self._channel().unary_stream(method, *args, **kwargs)

        return _StreamMethod(made, self._settings, method)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def made() -> Any:
            return self._channel().stream_unary(method, *args, **kwargs)

        return _StreamMethod(made, self._settings, method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def made() -> Any:
            return self._channel().stream_stream(method, *args, **kwargs)

        return _StreamMethod(made, self._settings, method)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Does nothing: the channel belongs to the client, whose other stubs still use it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        return None


class _Method:
    def __init__(
        self, made: Callable[[], Any], settings: Settings, method: str, *, safe: bool = False
    ) -> None:
        self._make = made
        self._made: Any = None
        self._settings = settings
        self._method = method
        self._safe = safe

    def _callable(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


class AsyncUnaryMethod(_Method):
    """One request, one answer."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Iterable[Pair] | None = None,
        **options: Options,
    ) -> _UnaryCall:
        plan = new_plan(
            self._settings,
            self._method,
            timeout_s=timeout,
            metadata=metadata or (),
            safe=self._safe,
        )
        return _UnaryCall(plan, self._callable(), request, options)

    async def reply(
        self,
        request: Any,
        *,
        timeout_s: float | None = None,
        metadata: Iterable[Pair] = (),
        idempotent: bool = False,
    ) -> Reply[Any]:
        plan = new_plan(
            self._settings,
            self._method,
            timeout_s=timeout_s,
            metadata=metadata,
            safe=self._safe or idempotent,
        )
        message, call, attempts = await _carry_out(plan, self._callable(), request, {})
        told: Any = (*await call.initial_metadata(), *await call.trailing_metadata())
        return plan.reply(message, metadata=told, attempts=attempts)


class _StreamMethod(_Method):
    """A stream on either side, or on both."""

    def __call__(
        self,
        requests: Any = None,
        timeout: float | None = None,
        metadata: Iterable[Pair] | None = None,
        **options: Options,
    ) -> _StreamCall:
        plan = new_plan(self._settings, self._method, timeout_s=timeout, metadata=metadata or ())
        return _StreamCall(plan, plan.send(self._callable(), requests, options))


class _UnaryCall:
    """A unary call under way, repeated where it may be: awaitable, as grpc's own is."""

    def __init__(self, plan: Plan, made: Any, request: Any, options: Options) -> None:
        self._plan = plan
        self._task = asyncio.ensure_future(_carry_out(plan, made, request, options))

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            message, _, _ = yield from self._task.__await__()
        except asyncio.CancelledError as error:
            raise _cancelled(self._plan, error) from None
        return message

    def cancel(self) -> bool:
        return self._task.cancel()

    def cancelled(self) -> bool:
        return self._task.cancelled()

    def done(self) -> bool:
        return self._task.done()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._task.add_done_callback(lambda _: callback(self))

    def time_remaining(self) -> float | None:
        return max(0.0, self._plan.started_s + self._plan.timeout_s - self._plan.clock())

    async def initial_metadata(self) -> Any:
        return await (await self._finished()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await (await self._finished()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await (await self._finished()).code()
        return code

    async def details(self) -> str:
        details: str = await (await self._finished()).details()
        return details

    async def wait_for_connection(self) -> None:
        await self._finished()

    async def _finished(self) -> Any:
        """The attempt that succeeded; raises the call's error where none did."""
        _, call, _ = await asyncio.shield(self._task)
        return call


class _StreamCall:
    """A call with a stream: grpc's own object, except that its errors are typed."""

    def __init__(self, plan: Plan, call: Any) -> None:
        self.plan = plan
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._call:
                yield message
        except grpc.RpcError as error:
            raise self.plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(self.plan, error) from None

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.RpcError as error:
            raise self.plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(self.plan, error) from None

    async def read(self) -> Any:
        try:
            return await self._call.read()
        except grpc.RpcError as error:
            raise self.plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(self.plan, error) from None

    async def write(self, request: Any) -> None:
        try:
            await self._call.write(request)
        except grpc.RpcError as error:
            raise self.plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(self.plan, error) from None

    async def done_writing(self) -> None:
        try:
            await self._call.done_writing()
        except grpc.RpcError as error:
            raise self.plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(self.plan, error) from None


async def _carry_out(plan: Plan, made: Any, request: Any, options: Options) -> tuple[Any, Any, int]:
    """The answer, its call, and how many attempts it took."""
    attempts = 0

    async def attempt() -> tuple[Any, Any]:
        nonlocal attempts
        attempts += 1
        call = plan.send(made, request, options)
        try:
            return await call, call  # cancelling this await cancels the call
        except grpc.RpcError as error:
            raise plan.error(error) from error
        except asyncio.CancelledError as error:
            raise _cancelled(plan, error) from None

    return *await plan.async_retrying()(attempt), attempts


def _cancelled(plan: Plan, error: asyncio.CancelledError) -> BaseException:
    """`error` where the caller's task is cancelled, else what it was: only the call ended.

    grpc says CancelledError too when the client is closed or the requests cannot be read, and a
    task that nobody cancelled must not see one.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return error
    return CallCancelledError(
        "the call was cancelled here: the client was closed, the call's cancel() was used, or "
        "reading its requests failed",
        request_id=plan.request_id,
    )
