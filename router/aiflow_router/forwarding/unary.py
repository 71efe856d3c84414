"""One unary call over a channel, without what grpc.aio wraps around its own core.

`grpc.aio.UnaryUnaryMultiCallable` makes a task and three objects for every call, which costs a
tenth of everything that a call costs in a proxy (docs/performance.md). The core's call below it has
the same coroutine without them. It is private to grpcio, whose version is pinned; the tests of the
router make no step without it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from aiflow_router.forwarding.metadata import Pairs
from aiflow_router.forwarding.unbroken import unbroken

NO_MESSAGE = "the backend said OK and sent no whole message"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(slots=True)  # Not frozen, for that is quicker to make.
class Answer:
    """What a backend answered to a unary call that went well."""

    message: bytes
    initial: Pairs
    trailing: Pairs


async def ask(
    channel: grpc.aio.Channel,
    method: str,
    request: bytes,
    *,
    timeout_s: float | None,
    metadata: Pairs,
) -> Answer:
    """Sends `request` and awaits the answer; cancelling the coroutine cancels the call.

    Raises AioRpcError with the backend's status, or with one that gRPC made up.
    """
    deadline_s = None if timeout_s is None else time.time() + timeout_s
    core: Any = channel._channel  # type: ignore[attr-defined]  # noqa: SLF001 - see above
    call = core.call(method.encode(), deadline_s, None, None)
    try:
        message = await unbroken(call.unary_unary(request, metadata, None))
    finally:
        if not call.done():
            call.cancel("the caller went away")
    # Both are there: these coroutines return without waiting.
    initial, status = await call.initial_metadata(), await call.status()
    if message is None:
        code = _CODES.get(status.code(), grpc.StatusCode.UNKNOWN)
        well = code is grpc.StatusCode.OK  # Without a message, or with one that was cut short.
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL if well else code,
            grpc.aio.Metadata.from_tuple(initial),
            grpc.aio.Metadata.from_tuple(status.trailing_metadata() or ()),
            details=NO_MESSAGE if well else status.details(),
            debug_error_string=status.debug_error_string(),
        )
    return Answer(message, initial, status.trailing_metadata())
