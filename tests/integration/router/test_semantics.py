"""gRPC's corners, for each kind of call, where the router knows the kind and where it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Mesh, Seen, backend, infer, mesh, until
from integration.router.typed_service import SERVICE, pool
from integration.router.wire import INFER, framed, head, wire

# Not grpc.aio's StringValue messages: bytes as they are, so that every corner can be reached.
KINDS = {
    "Get": "unary_unary",
    "Watch": "unary_stream",
    "Upload": "stream_unary",
    "Chat": "stream_stream",
}
PAIRS = (
    ("k", "first"),
    ("k", "second"),
    ("k-bin", b"\x00\xff,\x0a"),
    ("k-bin", b""),
    ("another", " !~,;=%20"),
    ("k", "first"),
)
DETAILS = b"\x08\x03\x12\x02no"  # google.rpc.Status
STATUSES = [
    pytest.param("plain", id="a plain message"),
    pytest.param("", id="no message"),
    pytest.param("naïve 模型 🙂", id="a message beyond ASCII"),
    pytest.param(
        "50 % of\r\n\tlines \x00\x7f", id="a message with per cent and control characters"
    ),
    pytest.param("x" * 4000, id="a long message"),
]


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, handle: Any) -> None:
        self._handler: Any = grpc.stream_stream_rpc_method_handler(handle)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return None if details.method.startswith("/grpc.reflection") else self._handler


@asynccontextmanager
async def served(handle: Any, *, known: bool) -> AsyncIterator[Mesh]:
    """A router in front of a service of which `handle` is each method; kinds known or not."""
    from grpc_reflection.v1alpha import reflection

    async def run(_: object, context: Any) -> None:
        await handle(context)

    server = grpc.aio.server(options=[("grpc.max_metadata_size", 65536)])
    server.add_generic_rpc_handlers((_Methods(run),))
    if known:
        reflection.enable_server_reflection((SERVICE,), server, pool())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with mesh() as m:
            await m.register(f"127.0.0.1:{port}", services=(SERVICE,))
            await until(lambda: m.router.kinds.pending() == 0)
            assert (m.router.kinds.get(SERVICE, f"/{SERVICE}/Get") is not None) == known
            yield m
    finally:
        await server.stop(None)


def call(m: Mesh, method: str, *messages: bytes, **options: Any) -> Any:
    kind = KINDS[method]
    given: Any = iter(messages) if kind.startswith("stream") else messages[0]
    return getattr(m.channel, kind)(f"/{SERVICE}/{method}")(given, **options)


async def answers(running: Any, method: str) -> list[bytes]:
    if KINDS[method].endswith("stream"):
        return [message async for message in running]
    return [await running]


every_kind = pytest.mark.parametrize("method", KINDS)
known_or_not = pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])


@every_kind
@known_or_not
async def test_metadata_keeps_its_order_and_repetitions_both_ways(method: str, known: bool) -> None:
    got: list[Any] = []

    async def handle(context: Any) -> None:
        got.append([pair for pair in context.invocation_metadata() if pair[0] in dict(PAIRS)])
        await context.send_initial_metadata(PAIRS)
        await context.write(await context.read())
        context.set_trailing_metadata(PAIRS)

    async with served(handle, known=known) as m:
        running = call(m, method, b"x", metadata=PAIRS)
        assert await answers(running, method) == [b"x"]
        for seen in (got[0], await running.initial_metadata(), await running.trailing_metadata()):
            kept = [tuple(pair) for pair in seen if pair[0] in dict(PAIRS)]
            # gRPC keeps the order of each name's values, not that between names.
            for name in dict(PAIRS):
                wanted = [value for key, value in PAIRS if key == name]
                assert [value for key, value in kept if key == name] == wanted


@every_kind
@known_or_not
@pytest.mark.parametrize("message", STATUSES)
async def test_a_status_with_its_message_and_details_passes_intact(
    method: str, known: bool, message: str
) -> None:
    async def handle(context: Any) -> None:
        await context.read()
        trailing = (("grpc-status-details-bin", DETAILS), ("t-bin", b"\x00"))
        await context.abort(grpc.StatusCode.DATA_LOSS, message, trailing)

    async with served(handle, known=known) as m:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers(call(m, method, b"x"), method)
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert caught.value.details() == message
        trailing = dict(tuple(caught.value.trailing_metadata() or ()))
        assert (trailing["grpc-status-details-bin"], trailing["t-bin"]) == (DETAILS, b"\x00")


@every_kind
@known_or_not
async def test_an_answer_of_trailers_only_stays_one(method: str, known: bool) -> None:
    async def handle(context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    async with served(handle, known=known) as m, wire(m.router.grpc_address) as connection:
        answer = await connection.ask(head(f"/{SERVICE}/{method}"), framed(b"x"))
        assert (answer.told, answer.message) == ("grpc 5", "gone")
        assert answer.headers is answer.trailers
        assert answer.data == b""


@every_kind
@known_or_not
async def test_empty_messages_are_messages(method: str, known: bool) -> None:
    async def handle(context: Any) -> None:
        count = 0
        while (await context.read()) is not grpc.aio.EOF:
            count += 1
        await context.write(b"")
        if method in {"Watch", "Chat"}:
            await context.write(str(count).encode())

    async with served(handle, known=known) as m:
        sent = (b"", b"") if KINDS[method].startswith("stream") else (b"",)
        got = await answers(call(m, method, *sent), method)
        wanted = [b"", str(len(sent)).encode()] if method in {"Watch", "Chat"} else [b""]
        assert got == wanted


@known_or_not
async def test_messages_before_a_failure_arrive(known: bool) -> None:
    async def handle(context: Any) -> None:
        for number in range(3):
            await context.write(bytes([number]))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")

    async with served(handle, known=known) as m:
        running = call(m, "Watch", b"x")
        assert [await running.read() for _ in range(3)] == [b"\x00", b"\x01", b"\x02"]
        with pytest.raises(grpc.aio.AioRpcError, match="no more"):
            await running.read()


@known_or_not
async def test_an_early_answer_ends_an_upload(known: bool) -> None:
    async def handle(context: Any) -> None:
        await context.read()
        await context.write(b"enough")

    async with served(handle, known=known) as m:
        chat = m.channel.stream_stream(f"/{SERVICE}/Chat")()
        await chat.write(b"x")
        assert await chat.read() == b"enough"
        assert await chat.read() is grpc.aio.EOF
        assert await chat.code() is grpc.StatusCode.OK
        await until(lambda: m.inflight() == 0)


@known_or_not
@pytest.mark.parametrize("refuses", [True, False], ids=["a refusal", "an answer"])
async def test_an_early_end_keeps_its_status_while_the_caller_goes_on_sending(
    known: bool, refuses: bool
) -> None:
    async def handle(context: Any) -> None:
        await context.read()
        if refuses:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no more")
        await context.write(b"enough")

    async def send(chat: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await chat.write(b"x")

    async with served(handle, known=known) as m:
        for _ in range(30):
            sending = asyncio.create_task(send(m.channel.stream_stream(f"/{SERVICE}/Chat")()))
            await asyncio.wait((sending,))
        # Not what the caller reads: that is what its own gRPC puts in place of the status.
        await until(lambda: b"".join(m.log).count(b"/Chat") == 30)
        lines = [json.loads(line) for line in b"".join(m.log).splitlines()]
        codes = {line["code"] for line in lines if line["method"].endswith("/Chat")}
        assert codes == {"PERMISSION_DENIED" if refuses else "OK"}


@every_kind
@known_or_not
async def test_a_deadline_shrinks_on_its_way(method: str, known: bool) -> None:
    left: list[float] = []

    async def handle(context: Any) -> None:
        left.append(context.time_remaining())
        await context.write(await context.read())

    async with served(handle, known=known) as m:
        for given_s in (1.0, 5.0, 12.5):
            began_s = time.time()
            await answers(call(m, method, b"x", timeout=given_s), method)
            passed_s = time.time() - began_s
            # The caller's own gRPC rounds up to three digits; the router adds nothing to that.
            assert 0.97 * given_s - passed_s < left[-1] <= given_s * 1.01


@pytest.mark.parametrize("path", [INFER, f"/{SERVICE}/Get", f"/{SERVICE}/Chat"])
async def test_a_cancel_reaches_the_backend_soon(path: str) -> None:
    """Half of them within 50 ms; how they spread is printed, with -s."""
    took_ms: list[float] = []
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(context: Any) -> None:
        await context.read()
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def hang_infer(_: Seen, context: Any) -> None:
        await hang(context)

    async with backend(ModelInfer=hang_infer) as server, served(hang, known=True) as m:
        await m.register(server.address, models=("m",), services=())
        for _ in range(100):
            asked.clear()
            cancelled.clear()
            running = m.channel.stream_stream(path)()
            await running.write(infer("m"))
            await asyncio.wait_for(asked.wait(), 5)
            began_s = time.perf_counter()
            running.cancel()
            await asyncio.wait_for(cancelled.wait(), 5)
            took_ms.append(1000 * (time.perf_counter() - began_s))
        took_ms.sort()
        print(  # noqa: T201 - for whoever asks with -s
            f"cancel reaches the backend of {path}: p50 {took_ms[50]:.1f} ms, "
            f"p99 {took_ms[98]:.1f} ms, longest {took_ms[99]:.1f} ms"
        )
        assert statistics.median(took_ms) < 50
        await until(lambda: m.inflight() == 0)


@pytest.mark.parametrize("sent", [1, 0], ids=["after a message", "at once"])
async def test_a_half_close_reaches_the_backend(sent: int) -> None:
    closed = asyncio.Event()

    async def handle(context: Any) -> None:
        while (await context.read()) is not grpc.aio.EOF:
            pass
        closed.set()

    async with served(handle, known=True) as m:
        chat = m.channel.stream_stream(f"/{SERVICE}/Chat")()
        for _ in range(sent):
            await chat.write(b"x")
        await chat.done_writing()
        await asyncio.wait_for(closed.wait(), 5)
        assert await chat.read() is grpc.aio.EOF


async def test_15_kib_of_metadata_pass_both_ways_each_time() -> None:
    large = (("k-bin", bytes(range(256)) * 40),)

    async def handle(context: Any) -> None:
        assert dict(context.invocation_metadata())["k-bin"] == large[0][1]
        await context.write(await context.read())
        context.set_trailing_metadata(large)

    options = [("grpc.max_metadata_size", 65536)]
    async with served(handle, known=True) as m:
        address = m.router.grpc_address
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            for method in (f"/{SERVICE}/Get", f"/{SERVICE}/Chat"):
                for _ in range(20):
                    asking: Any = channel.unary_unary(method)
                    running = asking(b"x", metadata=large)
                    await running
                    assert dict(tuple(await running.trailing_metadata()))["k-bin"] == large[0][1]
