"""Each strategy that a route can name, through real sockets."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Handle, Seen, backend, echo, infer, lost, mesh

INFER = "/inference.GRPCInferenceService/ModelInfer"


async def test_round_robin_takes_turns_also_when_an_endpoint_joins() -> None:
    routes = "routes: [{match: {model: m}, balance: round_robin}]"
    async with AsyncExitStack() as stack, mesh(routes) as m:
        servers = [await stack.enter_async_context(backend()) for _ in range(3)]
        for server in servers[:2]:
            await m.register(server.address, models=("m",))
        infers = m.channel.unary_unary(INFER)
        for _ in range(10):
            await infers(infer("m"))
        assert [len(server.seen) for server in servers] == [5, 5, 0]
        await m.register(servers[2].address, models=("m",))
        for _ in range(15):
            await infers(infer("m"))
        assert [len(server.seen) for server in servers] == [10, 10, 5]


async def slow(seen: Seen, context: Any) -> None:
    await asyncio.sleep(1.0)
    await echo(seen, context)


async def failing(_: Seen, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "out of order")


@pytest.mark.parametrize("method", ["/a.Echo/Echo", INFER])
@pytest.mark.parametrize(
    ("handle", "code"),
    [
        pytest.param(slow, grpc.StatusCode.OK, id="slow"),
        pytest.param(failing, grpc.StatusCode.INTERNAL, id="failing"),
    ],
)
async def test_peak_ewma_keeps_away_from_who_is_slow_or_fails(
    method: str, handle: Handle, code: grpc.StatusCode
) -> None:
    # Beside one other, for two are drawn: of three the fast one would not always be among them.
    routes = (
        "routes: [{match: {model: m}, balance: peak_ewma}, "
        "{match: {service: a.Echo}, balance: peak_ewma}]"
    )
    async with (
        backend() as fast,
        backend(Echo=handle, ModelInfer=handle) as other,
        mesh(routes) as m,
    ):
        for server in (fast, other):
            await m.register(server.address, models=("m",))
        call = m.channel.unary_unary(method)
        codes = Counter([await call(infer("m"), timeout=5).code() for _ in range(30)])
        # It is asked once, for it was not measured yet.
        assert (len(other.seen), len(fast.seen)) == (1, 29)
        assert codes == Counter({code: 1}) + Counter({grpc.StatusCode.OK: 29})


@pytest.mark.parametrize("method", ["/a.Echo/Echo", INFER])
async def test_a_session_stays_at_its_endpoint_until_that_is_gone(method: str) -> None:
    routes = (
        "routes: [{match: {model: m}, balance: session}, "
        "{match: {service: a.Echo}, balance: session}]"
    )
    async with AsyncExitStack() as stack, mesh(routes) as m:
        servers = [await stack.enter_async_context(backend()) for _ in range(3)]
        for server in servers:
            await m.register(server.address, models=("m",))

        async def call(*metadata: tuple[str, str]) -> str:
            rpc = m.channel.unary_unary(method)(infer("m"), metadata=metadata, timeout=5)
            await rpc
            served_by: str = dict(tuple(await rpc.trailing_metadata()))["x-aiflow-served-by"]
            return served_by.partition("@")[2]

        of_anna = {await call(("x-aiflow-session", "anna")) for _ in range(10)}
        assert len(of_anna) == 1
        assert len({await call(("x-aiflow-session", f"s{n}")) for n in range(40)}) == 3
        assert len({await call() for _ in range(40)}) == 3
        for server in servers:
            if server.address in of_anna:
                await server.server.stop(None)
                await lost(m, server.address)
        then = {await call(("x-aiflow-session", "anna")) for _ in range(10)}
        assert len(then) == 1
        assert then != of_anna
