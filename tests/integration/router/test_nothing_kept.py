"""A call that has ended leaves nothing behind that only the garbage collector could free.

What it would keep is gRPC's server call, by which the connection counts it as open: once 10,000
calls that failed were kept so, the router refused every call from there on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator

import grpc
import grpc.aio
import pytest
from integration.router.kit import Handle, Mesh, Seen, backend, busy, echo, infer, mesh, until

from aiflow_router.rpc.visit import Visit

CALLS = 40
# A timer or an answer that is on its way may still know of one.
STRAGGLERS = 2
SETTLED_S = 0.1


async def fail(_: Seen, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "asked to fail")


async def slow(_: Seen, __: object) -> None:
    await asyncio.sleep(30)


async def unary(to: Mesh, method: str, request: bytes = b"", timeout_s: float = 20.0) -> None:
    await to.channel.unary_unary(method)(request, timeout=timeout_s)


async def stream(to: Mesh, request: bytes) -> None:
    call = to.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
    await call.write(request)
    await call.read()
    await call.done_writing()
    await call.read()


ROUTES = """routes:
  - {match: {model: routed}, fallback: [busy, m]}
  - {match: {model: lost}, fallback: [busy, never]}
  - {match: {model: split}, split: {failing: 1, busy: 1, never: 1}}
  - {match: {model: routed-to-slow}, fallback: [busy, slow]}
  - {match: {model: nowhere}, fallback: [m]}
  - {match: {model: kept}, cache: {ttl: 60s}}
  - {match: {model: kept-slow}, cache: {ttl: 60s}}
  - {match: {model: kept-failing}, cache: {ttl: 60s}}
  - {match: {model: copied}, shadow: {to: failing, percent: 100}}
  - {match: {model: copied-failing}, shadow: {to: m, percent: 100}}
  - {match: {model: copied-slow}, shadow: {to: m, percent: 100}}
limits:
  - {name: quick, match: {model: paced}, rate: 200/s, burst: 1, wait: true}
  - {name: one, match: {model: one}, concurrency: 1, wait: true, queue: 2}
  - {name: seldom, match: {model: seldom}, rate: 1/h, wait: true}
"""


async def cancelled(to: Mesh, method: str, request: bytes = b"") -> None:
    call = to.channel.unary_unary(method)(request)
    await until(lambda: to.inflight() == 1)
    call.cancel()
    await until(lambda: to.inflight() == 0)


async def joined(to: Mesh, request: bytes) -> None:
    """Two equal calls at once, of which one waits until its time is up."""
    await asyncio.gather(
        *(unary(to, INFER, request, timeout_s=0.05) for _ in range(2)), return_exceptions=True
    )


async def three(to: Mesh, model: str) -> None:
    """At once; of those that are not answered the time is up soon."""
    calls = (unary(to, INFER, infer(model), timeout_s=1.05) for _ in range(3))
    await asyncio.gather(*calls, return_exceptions=True)


async def left(to: Mesh) -> None:
    """One waits for another, and both are cancelled."""
    calls = [to.channel.unary_unary(INFER)(infer("one")) for _ in range(2)]
    await until(lambda: to.inflight() == 2)
    for call in calls:
        call.cancel()
    await until(lambda: to.inflight() == 0)


INFER = "/inference.GRPCInferenceService/ModelInfer"
ENDS: dict[str, Callable[[Mesh], Awaitable[None]]] = {
    "answered": lambda to: unary(to, INFER, infer("m")),
    "refused by the backend": lambda to: unary(to, INFER, infer("failing")),
    "refused after a retry": lambda to: unary(to, INFER, infer("busy")),
    "refused by the router": lambda to: unary(to, INFER, infer("nobody's")),
    "malformed": lambda to: unary(to, INFER, b"\xff"),
    "of no known kind, answered": lambda to: unary(to, "/a.Echo/Echo"),
    "of no known kind, refused": lambda to: unary(to, "/a.Echo/Fail"),
    "of no known kind, late": lambda to: unary(to, "/a.Echo/Slow", timeout_s=0.05),
    "of no known kind, cancelled": lambda to: cancelled(to, "/a.Echo/Slow"),
    "late": lambda to: unary(to, INFER, infer("slow"), timeout_s=0.05),
    "cancelled": lambda to: cancelled(to, INFER, infer("slow")),
    "answered from the cache": lambda to: unary(to, INFER, infer("kept")),
    "refused, with a cache": lambda to: unary(to, INFER, infer("kept-failing")),
    "cancelled, with a cache": lambda to: cancelled(to, INFER, infer("kept-slow")),
    "late while it waited for another": lambda to: joined(to, infer("kept-slow")),
    "answered and copied": lambda to: unary(to, INFER, infer("copied")),
    "refused and copied": lambda to: unary(to, INFER, infer("copied-failing")),
    "cancelled and copied": lambda to: cancelled(to, INFER, infer("copied-slow")),
    "answered by a fallback": lambda to: unary(to, INFER, infer("routed")),
    "refused by all of a chain": lambda to: unary(to, INFER, infer("lost")),
    "refused by a split's side": lambda to: unary(to, INFER, infer("split")),
    "cancelled in a fallback": lambda to: cancelled(to, INFER, infer("routed-to-slow")),
    "answered after it waited for a limit": lambda to: three(to, "paced"),
    "sent away from the line of a limit": lambda to: three(to, "seldom"),
    "cancelled in the line of a limit": left,
    "a stream that fell back": lambda to: stream(to, infer("nowhere")),
}


BACKENDS: dict[str, Handle] = {
    "failing": fail,
    "kept-failing": fail,
    "copied-failing": fail,
    "busy": busy,
    "slow": slow,
    "one": slow,
    "kept-slow": slow,
    "copied-slow": slow,
}


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_call_that_has_ended_keeps_nothing(end: Callable[[Mesh], Awaitable[None]]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        echoing = await stack.enter_async_context(
            backend(Fail=fail, Slow=slow, ModelStreamInfer=echo)
        )
        to = await stack.enter_async_context(mesh(ROUTES))
        await to.register(echoing.address)
        for model in ("m", "kept", "copied", "paced", "seldom"):
            await to.register(echoing.address, models=(model,), services=(), backend=model)
        for model, handle in BACKENDS.items():
            server = await stack.enter_async_context(backend(ModelInfer=handle))
            another = await stack.enter_async_context(backend(ModelInfer=handle))
            await to.register(server.address, models=(model,), services=(), backend=model)
            await to.register(another.address, models=(model,), services=(), backend=model)
        with collector_off():
            for _ in range(CALLS):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await end(to)
            await until(lambda: to.inflight() == 0)
            await asyncio.sleep(SETTLED_S)  # The journal lets go of what it has counted.
            kept = sum(isinstance(thing, Visit) for thing in gc.get_objects())
    assert kept <= STRAGGLERS
