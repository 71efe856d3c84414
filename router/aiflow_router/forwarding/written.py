"""Writing to a stream so that its status stays what the backend said.

Where a stream has ended and its end was not heard yet, a write fails, and for that `write` of
grpc.aio puts INTERNAL in place of the status that is on its way. The core's call below it only
says that it failed. It is private to grpcio, as what `unary` uses.
"""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
import grpc.aio


async def written(rpc: grpc.aio.StreamStreamCall[bytes, bytes], message: bytes) -> bool:
    """Whether it was taken: if not then the call is over, and whoever reads is told why."""
    if rpc.done():
        return False
    core: Any = rpc._cython_call  # type: ignore[attr-defined]  # noqa: SLF001 - see above
    try:
        await rpc.wait_for_connection()
        await core.send_serialized_message(message)
    except (grpc.aio.AioRpcError, grpc.aio.InternalError):
        return False
    return True


async def asked(rpc: grpc.aio.StreamStreamCall[bytes, bytes], request: bytes) -> None:
    """Sends the only message. Where that cannot be sent whoever reads is told why."""
    if await written(rpc, request):
        with contextlib.suppress(grpc.aio.InternalError):
            await rpc.done_writing()
