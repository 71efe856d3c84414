"""The size of a model's batches is asked of its endpoints, and then one is filled at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from integration.router.kit import Backend, Handle, Mesh, Seen, backend, infer, mesh, until
from tritonclient.grpc import service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
ROUTES = "routes: [{match: {model: m}, balance: batch_aware, latency_aim: 5s, timeout: 20s}]"


def batching(size: int) -> service_pb2.ModelConfigResponse:
    answer = service_pb2.ModelConfigResponse()
    answer.config.max_batch_size = size
    answer.config.dynamic_batching.SetInParent()
    answer.config.instance_group.add(count=1)
    return answer


def telling(answer: bytes) -> Handle:
    async def tell(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await context.write(answer)

    return tell


def inferences(server: Backend) -> int:
    return sum(seen.method == INFER for seen in server.seen)


def metric(m: Mesh, name: str) -> float:
    lines = m.router.front.metrics.text().decode().splitlines()
    (value,) = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
    return value


class Held:
    """A ModelInfer that answers when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, seen: Seen, context: Any) -> None:
        await self.go.wait()
        await context.write(await context.read())


@asynccontextmanager
async def calls(m: Mesh, count: int, held: Held) -> AsyncIterator[None]:
    """So many calls to "m" at once, while the block lasts."""
    tasks = [asyncio.ensure_future(m.channel.unary_unary(INFER)(infer("m"))) for _ in range(count)]
    try:
        yield
    finally:
        held.go.set()
        await asyncio.gather(*tasks)


async def test_one_endpoint_is_filled_before_the_next() -> None:
    held = Held()
    size = telling(batching(2).SerializeToString())
    async with (
        backend(ModelConfig=size, ModelInfer=held) as one,
        backend(ModelConfig=size, ModelInfer=held) as two,
        mesh(ROUTES) as m,
    ):
        servers = (one, two)
        for server in servers:
            await m.register(server.address, models=("other", "m"))
        await until(lambda: m.router.batches.pending() == 0)
        assert metric(m, 'aiflow_endpoints_batch_unknown{model="m"}') == 0
        asked = [seen.messages for server in servers for seen in server.seen]
        assert asked == [[service_pb2.ModelConfigRequest(name="m").SerializeToString()]] * 2
        # Two run while two gather: four calls keep an endpoint's batches full.
        async with calls(m, 3, held):
            await until(lambda: sum(map(inferences, servers)) == 3)
            assert sorted(map(inferences, servers)) == [0, 3]
            async with calls(m, 3, held):
                await until(lambda: sum(map(inferences, servers)) == 6)
                assert sorted(map(inferences, servers)) == [2, 4]
        assert metric(m, 'aiflow_batch_aware_picks_total{how="filled",model="m"}') == 6
        assert metric(m, 'aiflow_batch_aware_picks_total{how="spread",model="m"}') == 0


def plain(size: int) -> service_pb2.ModelConfigResponse:
    answer = service_pb2.ModelConfigResponse()
    answer.config.max_batch_size = size
    return answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(None, "no ModelConfig", id="a server without ModelConfig"),
        pytest.param(b"\xff\xff", "cannot be read", id="an answer that is none"),
        pytest.param(plain(8).SerializeToString(), "no dynamic batching", id="no batching"),
        pytest.param(batching(1).SerializeToString(), "no dynamic batching", id="batches of one"),
    ],
)
async def test_where_no_size_can_be_learned_it_is_least_request_and_the_log_says_so(
    answer: bytes | None, why: str
) -> None:
    held = Held()
    methods: dict[str, Handle] = {"ModelInfer": held}
    if answer is not None:
        methods["ModelConfig"] = telling(answer)
    with structlog.testing.capture_logs() as log:
        async with backend(**methods) as one, backend(**methods) as two, mesh(ROUTES) as m:
            for server in (one, two):
                await m.register(server.address, models=("m",))
            await until(lambda: m.router.batches.pending() == 0)
            async with calls(m, 4, held):
                await until(lambda: inferences(one) + inferences(two) == 4)
                assert inferences(one) == 2
            assert metric(m, 'aiflow_endpoints_batch_unknown{model="m"}') == 2
            assert metric(m, 'aiflow_batch_aware_picks_total{how="spread",model="m"}') == 4
    warnings = [line for line in log if "least_request" in line["event"]]
    assert {line["address"] for line in warnings} == {one.address, two.address}
    assert all(why in line["why"] for line in warnings)


async def test_a_server_that_still_loads_its_models_is_asked_again() -> None:
    tries = 0

    async def later(_: Seen, context: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "model 'm' is not ready")
        await context.write(batching(4).SerializeToString())

    async with backend(ModelConfig=later) as server, mesh(ROUTES) as m:
        await m.register(server.address, models=("m",))
        await until(lambda: m.router.batches.pending() == 0)
        assert tries == 2
        assert m.router.batches.unknown() == {}


async def test_what_a_server_said_is_replaced_when_it_registers_again_and_lost_when_it_left() -> (
    None
):
    size = 2
    tells = asyncio.Event()
    tells.set()

    async def tell(_: Seen, context: Any) -> None:
        await tells.wait()
        await context.write(batching(size).SerializeToString())

    def rooms() -> list[int]:
        plan = m.router.front.table.model("m")
        return [load.rooms.get("m", 0) for load in plan.loads]

    async with backend(ModelConfig=tell) as server, mesh(ROUTES) as m:
        lease = await m.register(server.address, models=("m",))
        await until(lambda: rooms() == [4])
        size = 8
        tells.clear()
        assert await m.register(server.address, models=("m",)) == lease
        assert rooms() == [4]
        tells.set()
        await until(lambda: rooms() == [16])
        m.router.catalog.deregister(lease)
        assert m.router.batches.pending() == 0
        await m.register(server.address, models=("m",))
        await until(lambda: rooms() == [16])


async def test_nobody_is_asked_where_no_route_is_balanced_so() -> None:
    async with backend(ModelConfig=telling(b"")) as server, mesh() as m:
        await m.register(server.address, models=("m",))
        await m.channel.unary_unary(INFER)(infer("m"))
        assert m.router.batches.pending() == 0
        assert [seen.method for seen in server.seen] == [INFER]
