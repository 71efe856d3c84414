"""A route with a fallback, backends that fail as each condition says, and calls."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from integration.router.kit import Backend, Handle, Mesh, Seen, backend, failure_of, infer, mesh

from aiflow_sdk import errors, status

PREFIX = "/inference.GRPCInferenceService"
INFER, STREAM, READY = f"{PREFIX}/ModelInfer", f"{PREFIX}/ModelStreamInfer", f"{PREFIX}/ModelReady"
VERSION = b"\x12\x011"


def fails(error: errors.AiflowError) -> Handle:
    """A backend that reads the request and ends with `error`."""

    async def handle(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await context.abort(
            status.status_code(error), error.message, tuple(status.to_trailers(error))
        )

    return handle


async def unavailable(seen: Seen, context: Any) -> None:
    """As a Triton that restarts: no details."""
    seen.messages.append(await context.read())
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


@asynccontextmanager
async def routed(
    fallback: str, handles: Mapping[str, Handle], *, more: str = ""
) -> AsyncIterator[tuple[Mesh, dict[str, Backend]]]:
    """A route of model `a` with `fallback` and the like, and a backend for each model."""
    config = f"routes: [{{match: {{model: a}}, {fallback}}}{more}]"
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh(config))
        servers: dict[str, Backend] = {}
        for name, handle in handles.items():
            methods = dict.fromkeys(("ModelInfer", "ModelStreamInfer", "ModelReady"), handle)
            servers[name] = await stack.enter_async_context(backend(**methods))
            await m.register(servers[name].address, models=(name,), backend=name)
        yield m, servers


async def ask(m: Mesh, request: bytes = b"", **options: Any) -> tuple[bytes, dict[str, Any]]:
    call = m.channel.unary_unary(INFER)(request or infer("a"), **{"timeout": 5, **options})
    return await call, dict(tuple(await call.trailing_metadata()))


async def refusal(m: Mesh, request: bytes = b"", **options: Any) -> errors.AiflowError:
    return await failure_of(ask(m, request, **options))
