"""Callers that send far too much of something: memory stays bounded, and others go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator

import pytest
from h2.settings import SettingCodes
from integration.router.kit import infer
from integration.router.router_process import (
    RouterProcess,
    backend_process,
    others,
    router_process,
)
from integration.router.wire import Wire, frame, framed, head, wire

GOOD = framed(infer("m"))
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4

# What a flood may leave behind: Python and malloc keep some of what they once had.
MAY_GROW_MB = 50
MAX_STREAMS, MAX_CONNECTIONS = 1024, 300


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    listen = f", max_connections: {MAX_CONNECTIONS}"
    folder = tmp_path_factory.mktemp("router")
    with (
        backend_process() as address,
        router_process(folder, address, listen=listen) as running,
    ):
        yield running


def block(connection: Wire) -> bytes:
    pairs = [(str(name).encode(), str(value).encode()) for name, value in head()]
    return connection.h2.encoder.encode(pairs)


async def frames(connection: Wire, kind: int, payload: bytes, *, stream: int = 0) -> None:
    for _ in range(100):
        await connection.raw(frame(kind, 0, stream, payload) * 1000)


async def rapid_resets(address: str) -> None:
    """CVE-2023-44487: 10,000 calls, each cancelled at once."""
    async with wire(address) as connection:
        for first in range(1, 20_000, 200):
            await connection.raw(
                b"".join(
                    frame(HEADERS, END_HEADERS, stream, block(connection))
                    + frame(DATA, END_STREAM, stream, GOOD)
                    + frame(RESET, 0, stream, struct.pack(">I", 8))
                    for stream in range(first, first + 200, 2)
                )
            )
            await asyncio.sleep(0)


async def resets_without_a_message(address: str) -> None:
    async with wire(address) as connection:
        for first in range(1, 20_000, 200):
            await connection.raw(
                b"".join(
                    frame(HEADERS, END_HEADERS, stream, block(connection))
                    + frame(RESET, 0, stream, struct.pack(">I", 8))
                    for stream in range(first, first + 200, 2)
                )
            )
            await asyncio.sleep(0)


async def pings(address: str) -> None:
    async with wire(address) as connection:
        connection.reading.clear()  # Nor are the answers read.
        await frames(connection, PING, b"12345678")
        connection.reading.set()
        assert (await connection.ask(head(), GOOD)).told == "grpc 0"


async def settings(address: str) -> None:
    async with wire(address) as connection:
        connection.reading.clear()
        await frames(connection, SETTINGS, b"")


async def window_updates(address: str) -> None:
    async with wire(address) as connection:
        await frames(connection, WINDOW, struct.pack(">I", 1))


async def empty_data(address: str) -> None:
    async with wire(address) as connection:
        await frames(connection, DATA, b"", stream=await connection.begin(head("/a.Echo/Echo")))


async def unknown_frames(address: str) -> None:
    async with wire(address) as connection:
        await frames(connection, 0x77, b"x" * 64)
        assert (await connection.ask(head(), GOOD)).told == "grpc 0"


async def continuations(address: str) -> None:
    """One header block without an end."""
    async with wire(address) as connection:
        await connection.raw(frame(HEADERS, 0, 1, block(connection)))
        pair = b"\x00\x03x-a\x7f\x81\x00" + b"a" * 256  # Not indexed, so that it costs its size.
        for _ in range(2000):
            await connection.raw(frame(CONTINUATION, 0, 1, pair * 60))
        await asyncio.wait_for(connection.closed.wait(), 10)


async def empty_continuations(address: str) -> None:
    async with wire(address) as connection:
        await connection.raw(frame(HEADERS, 0, 1, block(connection)))
        await frames(connection, CONTINUATION, b"", stream=1)


async def open_streams(address: str) -> None:
    """More calls at once than one connection may have."""
    async with wire(address) as connection:
        # Those that come before the router's settings are acknowledged may be refused too.
        assert (await connection.ask(head(), GOOD)).told == "grpc 0"
        connection.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2**31
        connection.h2.remote_settings.acknowledge()
        opened = [await connection.begin(head("/a.Echo/Echo")) for _ in range(MAX_STREAMS + 500)]
        refused = [await connection.answer(stream) for stream in opened[MAX_STREAMS:]]
        assert {answer.told for answer in refused} == {"reset REFUSED_STREAM"}
        assert not any(connection.answers[stream].done.is_set() for stream in opened[:MAX_STREAMS])


async def connections(address: str) -> None:
    """More connections than there may be: who has one keeps it, further ones are closed."""
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(wire(address)) for _ in range(MAX_CONNECTIONS + 50)]
        async with asyncio.timeout(10):
            while sum(one.closed.is_set() for one in held) < 50:  # noqa: ASYNC110 - as kit.until
                await asyncio.sleep(0.01)
        assert (await held[0].ask(head(), GOOD)).told == "grpc 0"


async def half_sent_messages(address: str) -> None:
    """Ten callers who vanish in the middle of a large message."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            connection = await stack.enter_async_context(wire(address))
            stream = await connection.begin(head())
            await connection.send(stream, framed(bytes(4_000_000), length=60_000_000))
            connection.abandon()


async def compressed_bombs(address: str) -> None:
    """Messages of 140 KB that are 140 MB when they are unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(140)) + packer.flush()
    async with wire(address) as connection:
        for _ in range(5):
            answer = await connection.ask(head(grpc_encoding="gzip"), framed(bomb, flag=1))
            assert answer.told == "grpc 8"
            assert "larger than max" in answer.message


async def garbage(address: str) -> None:
    """What is no HTTP/2 at all, and what is none after the preface."""
    openings = (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" + os.urandom(512),  # TLS
        os.urandom(4096),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    )
    for data in openings * 50:
        async with wire(address, start=False) as connection:
            await connection.raw(data)
            await asyncio.wait_for(connection.closed.wait(), 5)
    frames = (
        b"\xff\xff\xff" + bytes(6),  # a frame of 16 MiB
        frame(SETTINGS, 0, 0, b"12345"),
        frame(SETTINGS, 0, 3),
        frame(WINDOW, 0, 0, bytes(4)),
        frame(PING, 0, 0, b"abc"),
        frame(CONTINUATION, END_HEADERS, 1),
        frame(HEADERS, END_HEADERS, 1, b"\xff" * 8),
        frame(HEADERS, END_HEADERS | 8, 1, b"\xff\x82"),  # more padding than there is
    )
    for data in frames * 20:
        async with wire(address) as connection:
            await connection.raw(data)
            await asyncio.wait_for(connection.closed.wait(), 5)


async def ignored_garbage(address: str) -> None:
    """What is wrong and does no harm: the connection goes on."""
    frames = (
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 7, b"x"),
        frame(WINDOW, 0, 0, struct.pack(">I", 2**31 - 1)),  # past the largest window
        frame(RESET, 0, 9, struct.pack(">I", 8)),
        frame(HEADERS, END_HEADERS | END_STREAM, 2, b"\x82"),
        frame(2, 0, 1, bytes(5)),  # PRIORITY
        frame(5, END_HEADERS, 1, bytes(10)),  # PUSH_PROMISE
    )
    for data in frames:
        async with wire(address) as connection:
            await connection.raw(data)
            assert (await connection.ask(head(), GOOD)).told == "grpc 0"


FLOODS: tuple[Callable[[str], Awaitable[None]], ...] = (
    *(rapid_resets, resets_without_a_message, pings, settings, window_updates, empty_data),
    *(unknown_frames, continuations, empty_continuations, open_streams, connections),
    *(half_sent_messages, compressed_bombs, garbage, ignored_garbage),
)


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
async def test_a_flood_harms_nobody_else(
    router: RouterProcess, flood: Callable[[str], Awaitable[None]]
) -> None:
    before_mb, log_from = router.rss_mb(), len(router.log())
    async with others(router.address) as met:
        await flood(router.address)
    print(  # noqa: T201 - shown with -s, and when the test fails
        f"{flood.__name__}: others {len(met.took_ms)} calls, p50 {met.at(0.5):.1f} ms, "
        f"p99 {met.at(0.99):.1f} ms, longest {met.at(1):.0f} ms; "
        f"memory {before_mb:.0f} to {router.rss_mb():.0f} MB"
    )
    assert met.errors == []
    assert met.took_ms
    await router.shrinks_to(before_mb + MAY_GROW_MB)
    await router.comes_to_rest()
    log = router.log()[log_from:]
    assert "the router failed" not in log
    assert "Traceback" not in log
