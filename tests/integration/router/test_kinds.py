"""Methods whose kind is learned go as what they are; methods of unknown kind work all the same."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import wrappers_pb2
from integration.router.kit import Mesh, backend_process, mesh, until
from integration.router.typed_service import KINDS, SERVICE, shop

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import errors, status

Text = wrappers_pb2.StringValue
STREAM_TIMES = f"routes: [{{match: {{service: {SERVICE}}}, timeout: 300ms}}]"


def stub(m: Mesh, name: str) -> Any:
    ways = ("unary", "stream")
    kind = "_".join(ways[streams] for streams in KINDS[name])
    return getattr(m.channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=Text.SerializeToString,
        response_deserializer=Text.FromString,
    )


def known(m: Mesh, name: str = "Get") -> bool:
    return m.router.kinds.get(SERVICE, f"/{SERVICE}/{name}") is not None


async def learned(m: Mesh) -> None:
    await until(lambda: m.router.kinds.pending() == 0)


def unary_calls(m: Mesh) -> int:
    """How many calls the router passed on as unary ones."""
    lines = m.router.front.metrics.text().decode().splitlines()
    (count,) = [line for line in lines if line.startswith("aiflow_overhead_seconds_count")]
    return int(float(count.rpartition(" ")[2]))


@pytest.mark.parametrize("reflect", [True, False])
async def test_all_four_kinds_of_a_typed_service(reflect: bool) -> None:
    async with shop(reflect=reflect) as (address, _), mesh() as m:
        await m.register(address, services=(SERVICE,))
        await learned(m)
        assert known(m) == reflect
        call = stub(m, "Put")(Text(value="a"), timeout=5)
        assert (await call).value == "a"
        assert dict(tuple(await call.initial_metadata())) == {"i": "1"}
        trailing = dict(tuple(await call.trailing_metadata()))
        assert trailing["t-bin"] == b"\x00"
        assert trailing["x-aiflow-served-by"] == f"echo@{address}"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(m, "Put")(Text(value="fail"))
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert dict(tuple(caught.value.trailing_metadata() or ()))["t-bin"] == b"\x01"
        assert unary_calls(m) == (2 if reflect else 0)
        two = [Text(value="a"), Text(value="b")]
        assert [got.value async for got in stub(m, "Watch")(Text(value="0"))] == ["0", "0"]
        assert (await stub(m, "Upload")(iter(two))).value == "ab"
        assert [got.value async for got in stub(m, "Chat")(iter(two))] == ["a", "b"]
        assert unary_calls(m) == (2 if reflect else 0)


async def test_a_cancelled_unary_call_is_cancelled_at_the_backend() -> None:
    async with shop() as (address, server), mesh() as m:
        await m.register(address, services=(SERVICE,))
        await learned(m)
        call = stub(m, "Put")(Text(value="hang"))
        await until(lambda: server.seen == ["hang"])
        call.cancel()
        await until(lambda: server.cancelled == 1, within_s=1)
        await until(lambda: m.inflight() == 0, within_s=1)


async def test_a_handler_that_was_made_before_its_kind_was_known_is_replaced() -> None:
    async with shop() as (address, _), mesh() as m, shop(reflect=False) as (silent, _):
        await m.register(silent, services=(SERVICE,))
        await learned(m)
        await stub(m, "Put")(Text(value="a"))
        assert unary_calls(m) == 0
        await m.register(address, services=(SERVICE,))
        await until(lambda: known(m))
        await stub(m, "Put")(Text(value="a"))
        assert unary_calls(m) == 1


async def test_endpoints_that_disagree_make_a_method_a_stream_until_one_leaves() -> None:
    async with shop() as (one, _), shop(unary_get=False) as (two, _), mesh() as m:
        await m.register(one, services=(SERVICE,))
        await learned(m)
        lease = await m.register(two, services=(SERVICE,))
        await learned(m)
        await stub(m, "Get")(Text(value="a"))
        assert unary_calls(m) == 0
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
        await stub(m, "Get")(Text(value="a"))
        assert unary_calls(m) == 1


async def test_a_server_that_registers_before_it_listens_is_asked_again() -> None:
    async with shop() as (address, _):
        pass  # Only its address is of interest, which is free again now.
    async with mesh() as m:
        await m.register(address, services=(SERVICE,))
        await asyncio.sleep(0)
        assert m.router.kinds.pending() == 1
        async with shop(address=address):
            await learned(m)
            assert known(m)


async def test_a_server_that_answers_reflection_with_nonsense_or_never_does_no_harm() -> None:
    async def nonsense(requests: Any, context: Any) -> Any:
        async for _ in requests:
            yield b"\xff\xff\xff"

    async def never(requests: Any, context: Any) -> Any:
        await asyncio.Event().wait()
        yield b""

    for answer in (nonsense, never):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "grpc.reflection.v1.ServerReflection",
                    {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(answer)},
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with shop() as (address, _), mesh() as m:
                await m.register(f"127.0.0.1:{port}", services=("other.Service",))
                await m.register(address, services=(SERVICE,))
                await until(lambda: known(m), within_s=1)
                assert (await stub(m, "Get")(Text(value="a"))).value == "a"
                assert m.router.kinds.get("other.Service", "/other.Service/Get") is None
        finally:
            await server.stop(None)


@pytest.mark.parametrize("name", ["Get", "Put"])
async def test_only_a_method_that_may_be_repeated_is_after_its_backend_died(name: str) -> None:
    async with (
        backend_process("typed_service.py") as (address, _),
        shop() as (other, server),
        mesh() as m,
    ):
        for each in (address, other):
            await m.register(each, services=(SERVICE,))
        await learned(m)
        answered = 0
        error: errors.AiflowError | None = None
        for _ in range(100):
            call = stub(m, name)(Text(value="die"))
            try:
                await call
            except grpc.aio.AioRpcError as failure:
                error = status.from_rpc_error(failure)
                break
            answered += 1
            if dict(tuple(await call.trailing_metadata()))["x-aiflow-attempts"] == "2":
                break
        else:
            pytest.fail("the server that dies was never called")
        assert (error is None) == (name == "Get")
        if error is not None:
            assert (error.code, error.reason) == ("UNAVAILABLE", "BACKEND_LOST")
        assert len(server.seen) == answered


@pytest.mark.parametrize(("name", "times"), [("Get", 2), ("Put", 1)])
async def test_an_unavailable_backend_is_passed_over_where_that_is_safe(
    name: str, times: int
) -> None:
    async with shop() as (one, first), shop() as (two, second), mesh() as m:
        for each in (one, two):
            await m.register(each, services=(SERVICE,))
        await learned(m)
        with pytest.raises(grpc.aio.AioRpcError, match="not now"):
            await stub(m, name)(Text(value="away"))
        assert len(first.seen) + len(second.seen) == times


@pytest.mark.parametrize("reflect", [True, False])
async def test_a_routes_timeout_ends_a_unary_call_and_no_stream(reflect: bool) -> None:
    async with shop(reflect=reflect) as (address, server), mesh(STREAM_TIMES) as m:
        await m.register(address, services=(SERVICE,))
        await learned(m)

        async def slowly() -> Any:
            yield Text(value="a")
            await asyncio.sleep(0.6)
            yield Text(value="b")

        async def watched() -> list[str]:
            return [got.value async for got in stub(m, "Watch")(Text(value="0.6"))]

        async def chatted() -> list[str]:
            return [got.value async for got in stub(m, "Chat")(slowly())]

        async def hung() -> errors.AiflowError:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(m, "Put")(Text(value="hang"))
            return status.from_rpc_error(caught.value)

        watch, chat, upload, error = await asyncio.gather(
            watched(), chatted(), stub(m, "Upload")(slowly()), hung()
        )
        assert watch == ["0.6", "0.6"]
        assert chat == ["a", "b"]
        assert upload.value == "ab"
        assert isinstance(error, errors.DeadlineExceededError)
        assert "route" in error.message
        await until(lambda: server.cancelled == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(m, "Upload")(slowly(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
