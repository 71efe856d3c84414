"""Calls of every kind pass through unchanged, and what cannot be passed on is refused clearly."""

import asyncio
import random
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Seen, backend, echo, half_closes, infer, mesh, until

from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
DETAILS = status.to_trailers(errors.BadInputError("no", violations={"a": "b"}))[0][1]


async def annotated(seen: Seen, context: Any) -> None:
    await context.send_initial_metadata((("i", "1"), ("i-bin", b"\x00\xff")))
    await echo(seen, context)
    context.set_trailing_metadata(
        (("t", "2"), ("t-bin", b"\xff\x00"), ("x-aiflow-served-by", "no"))
    )


async def aborting(seen: Seen, context: Any) -> None:
    await context.read()
    await context.abort(
        grpc.StatusCode.INVALID_ARGUMENT,
        "sinn \u00e4 no",
        (("grpc-status-details-bin", DETAILS), ("t-bin", b"\x01")),
    )


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_every_kind_passes_with_metadata_both_ways(kind: str) -> None:
    async with backend(Echo=annotated) as server, mesh() as m:
        await m.register(server.address)
        client_streams, server_streams = kind.split("_")
        request: Any = iter([b"a", b"bb"]) if client_streams == "stream" else b"a"
        metadata = (("k-bin", b"\x00\x01"), ("k", "v"), ("k", "w"), ("x-request-id", "job-1"))
        if kind == "stream_unary":
            request = iter([b"a"])  # The backend echoes, and one answer is allowed.
        call = getattr(m.channel, kind)("/a.Echo/Echo")(request, metadata=metadata, timeout=5)
        answers = (
            [message async for message in call] if server_streams == "stream" else [await call]
        )
        assert answers == ([b"a", b"bb"] if kind == "stream_stream" else [b"a"])
        assert dict(tuple(await call.initial_metadata())) == {"i": "1", "i-bin": b"\x00\xff"}
        trailing = dict(tuple(await call.trailing_metadata()))
        assert trailing == {
            "t": "2",
            "t-bin": b"\xff\x00",
            "x-request-id": "job-1",
            "x-aiflow-served-by": f"echo@{server.address}",
            "x-aiflow-attempts": "1",
            "x-aiflow-policy-version": m.router.policies.current.version,
        }
        (seen,) = server.seen
        assert seen.metadata["k-bin"] == b"\x00\x01"
        assert seen.metadata["x-request-id"] == "job-1"
        assert seen.half_closed
        assert seen.time_remaining_s is not None
        assert 3 < seen.time_remaining_s < 5.1


@pytest.mark.parametrize("method", ["/a.Echo/Abort", INFER])
async def test_a_backends_status_passes_unchanged(method: str) -> None:
    async with backend(Abort=aborting, ModelInfer=aborting) as server, mesh() as m:
        await m.register(server.address, models=("m",))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.channel.unary_unary(method)(infer("m"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "sinn \u00e4 no"
        trailing = dict(tuple(caught.value.trailing_metadata() or ()))
        assert trailing["grpc-status-details-bin"] == DETAILS
        assert trailing["t-bin"] == b"\x01"
        assert trailing["x-request-id"]


async def test_an_unknown_method_of_a_known_service_is_the_backends_answer() -> None:
    async with backend() as server, mesh() as m:
        await m.register(server.address)
        with pytest.raises(grpc.aio.AioRpcError, match="Method not found") as caught:
            await m.channel.unary_unary("/a.Echo/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_initial_metadata_and_answers_come_before_the_caller_has_finished() -> None:
    async with backend(Echo=annotated) as server, mesh() as m:
        await m.register(server.address)
        call = m.channel.stream_stream("/a.Echo/Echo")()
        assert dict(tuple(await call.initial_metadata()))["i"] == "1"
        for message in (b"1", b"2", b"3"):
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("method", ["/a.Echo/Hang", INFER])
async def test_a_cancelled_call_frees_the_backend_and_the_count(method: str) -> None:
    async def hang(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.Event().wait()

    async with backend(Hang=hang, ModelInfer=hang) as server, mesh() as m:
        await m.register(server.address, models=("m",))
        call = m.channel.unary_unary(method)(infer("m"))
        await until(lambda: bool(server.seen and server.seen[0].messages))
        assert (await m.endpoints())[server.address].inflight == 1
        call.cancel()
        await until(lambda: server.seen[0].cancelled, within_s=1)
        await until(lambda: m.inflight() == 0, within_s=1)
        assert (await m.endpoints())[server.address].inflight == 0


async def test_a_cancelled_upload_is_never_taken_for_a_finished_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_closed = half_closes(monkeypatch)
    async with backend() as server, mesh("health: {active: false}") as m:
        await m.register(server.address)
        for _ in range(50):
            call = m.channel.stream_stream("/a.Echo/Echo")()
            await call.write(b"part")
            await call.read()
            call.cancel()
            await until(lambda: m.inflight() == 0)
        assert not half_closed
        finished = m.channel.stream_unary("/a.Echo/Echo")(iter([b"all"]))
        await until(lambda: len(half_closed) == 1)
        finished.cancel()


@pytest.mark.parametrize("method", ["/a.Echo/Hang", INFER])
async def test_the_earlier_of_the_callers_and_the_routes_deadline_counts(method: str) -> None:
    async def hang(seen: Seen, context: Any) -> None:
        await asyncio.Event().wait()

    routes = (
        "routes: [{match: {model: m}, timeout: 100ms}, {match: {service: a.Echo}, timeout: 100ms}]"
    )
    async with backend(Hang=hang, ModelInfer=hang) as server, mesh(routes) as m:
        await m.register(server.address, models=("m",))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.channel.unary_unary(method)(infer("m"), timeout=10)
        error = status.from_rpc_error(caught.value)
        assert isinstance(error, errors.DeadlineExceededError)
        assert "route" in error.message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.channel.unary_unary(method)(infer("m"), timeout=0.03)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if method == INFER:  # Of a method of unknown kind the backend is told the caller's.
            remaining = [seen.time_remaining_s for seen in server.seen if seen.time_remaining_s]
            assert all(left_s <= 0.11 for left_s in remaining)
        await until(lambda: m.inflight() == 0)
        assert (await m.endpoints())[server.address].inflight == 0


async def test_a_models_stream_outlives_its_routes_timeout() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        for _ in range(3):
            await context.write(await context.read())
            await asyncio.sleep(0.3)

    routes = "routes: [{match: {model: m}, timeout: 300ms}]"
    async with backend(ModelStreamInfer=slow) as server, mesh(routes) as m:
        await m.register(server.address, models=("m",))
        method = INFER.replace("ModelInfer", "ModelStreamInfer")
        call = m.channel.stream_stream(method)(iter([infer("m")] * 3))
        assert [message async for message in call] == [infer("m")] * 3
        assert server.seen[0].time_remaining_s is None
        call = m.channel.stream_stream(method)(iter([infer("m")] * 3), timeout=0.4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [message async for message in call]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", ["/a.Echo/Echo", INFER])
async def test_a_message_over_the_limit_is_refused_and_the_limit_named(method: str) -> None:
    small = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', max_message_mb: 1}"
    from aiflow_router.config.file import parse

    async def large(seen: Seen, context: Any) -> None:
        await context.read()
        await context.write(bytes(1024 * 1024 + 1))

    async with backend(Large=large) as server, mesh(parse(small)) as m:
        await m.register(server.address, models=("m",))
        fits = infer("m", b"\x1a" + b"\x80\x80\x3c" + bytes(60 * 16384))
        assert await m.channel.unary_unary(method)(fits) == fits
        over = infer("m", b"\x1a" + b"\x80\x80\x44" + bytes(68 * 16384))
        for sent, to in ((over, method), (b"", "/a.Echo/Large")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await m.channel.unary_unary(to)(sent)
            error = status.from_rpc_error(caught.value)
            assert isinstance(error, errors.MessageTooLargeError)
            assert error.code == "RESOURCE_EXHAUSTED"
            assert "1048576" in error.message


async def test_a_slow_reader_slows_the_writer() -> None:
    written = 0

    async def flood(seen: Seen, context: Any) -> None:
        nonlocal written
        await context.read()
        for _ in range(2000):
            await context.write(bytes(65536))
            written += 1

    async with backend(Flood=flood) as server, mesh() as m:
        await m.register(server.address)
        call = m.channel.stream_stream("/a.Echo/Flood")()
        await call.write(b"")
        await call.read()
        previous = -1
        while previous != written:  # Until it stands still.
            previous = written
            await asyncio.sleep(0.2)
        assert written < 1000
        call.cancel()


async def test_keys_never_reach_the_backend_or_the_log() -> None:
    import hashlib

    digest = hashlib.sha256(b"top-secret").hexdigest()
    auth = (
        "auth: {mode: required, keys: [{name: a, tenant: shop, "
        f"sha256: {digest}, may: [call, register]}}]}}"
    )
    key = ("authorization", "Bearer top-secret")
    async with backend() as server, mesh(auth) as m:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.register(server.address)
        assert status.from_rpc_error(caught.value).reason == "KEY_INVALID"
        from aiflow.registry.v1 import registry_pb2

        await m.registry.Register(
            registry_pb2.RegisterRequest(
                endpoint=registry_pb2.Endpoint(
                    backend="b",
                    address=server.address,
                    protocol=registry_pb2.PROTOCOL_OIP,
                    models=["m"],
                    services=["a.Echo"],
                )
            ),
            metadata=(key,),
        )
        for method in ("/a.Echo/Echo", INFER):
            await m.channel.unary_unary(method)(
                infer("m"), metadata=(key, ("x-api-key", "top-secret"))
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await m.channel.unary_unary(method)(infer("m"))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(server.seen) == 2
        assert "top-secret" not in str([seen.metadata for seen in server.seen])
        await until(lambda: b'"tenant":"shop"' in b"".join(m.log))
        assert b"top-secret" not in b"".join(m.log)


@pytest.mark.parametrize(
    ("method", "request_bytes", "code", "reason", "hint"),
    [
        (INFER, infer("detecter"), "NOT_FOUND", "MODEL_NOT_FOUND", "did you mean detector?"),
        (INFER, b"", "INVALID_ARGUMENT", "BAD_INPUT", "names no model"),
        (INFER, b"\x0a\x05m", "INVALID_ARGUMENT", "BAD_INPUT", "cut short"),
        ("/a.Ecco/Echo", b"", "UNIMPLEMENTED", "SERVICE_NOT_FOUND", "did you mean a.Echo?"),
        ("/nonsense", b"", "UNIMPLEMENTED", "SERVICE_NOT_FOUND", "no service"),
        (INFER, infer("routed"), "UNAVAILABLE", "NO_ENDPOINT", "right now"),
    ],
)
async def test_a_name_that_nothing_serves(
    method: str, request_bytes: bytes, code: str, reason: str, hint: str
) -> None:
    async with backend() as server, mesh("routes: [{match: {model: routed}}]") as m:
        await m.register(server.address, models=("detector",))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.channel.unary_unary(method)(request_bytes)
        error = status.from_rpc_error(caught.value)
        assert (error.code, error.reason) == (code, reason)
        assert hint in error.message
        assert error.request_id
        assert (error.retry_after_s is not None) == (reason == "NO_ENDPOINT")


async def test_any_bytes_at_the_door_get_a_status() -> None:
    rng, codes = random.Random(7), set[str]()
    methods = ("ModelInfer", "ModelReady", "ModelStatistics", "RepositoryIndex", "Nonsense")
    async with backend() as server, mesh() as m:
        await m.register(server.address, models=("m",))
        paths = [
            *(f"/inference.GRPCInferenceService/{name}" for name in methods),
            *("/aiflow.registry.v1.RegistryService/Register", "/a.Echo/Echo", "/x", "//"),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ]
        for _ in range(300):
            raw = rng.randbytes(rng.randrange(40))
            try:
                await m.channel.unary_unary(rng.choice(paths))(raw, timeout=5)
            except grpc.aio.AioRpcError as failure:
                codes.add(failure.code().name)
        assert not codes & {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"}
        await until(lambda: m.inflight() == 0)
