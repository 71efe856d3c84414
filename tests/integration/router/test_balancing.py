"""Each strategy that a route can name, through real sockets."""

from contextlib import AsyncExitStack

from integration.router.kit import backend, infer, mesh

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
