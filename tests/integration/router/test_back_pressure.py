"""A reader who stops holds up the writer, not the router's memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from integration.router.kit import Seen, backend
from integration.router.router_process import router_process
from integration.router.wire import framed, head, wire

MESSAGE = bytes(1024 * 1024)
TOTAL = 1024  # of them: 1 GiB
# Flow-control windows of both hops, and a message or two of 1 MiB on each.
MAY_GROW_MB = 64


async def stands_still(count: Any) -> None:
    """Until `count()` has not moved for half a second."""
    previous, moved_s = -1, asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        while True:
            now, now_s = count(), asyncio.get_running_loop().time()
            if now != previous:
                previous, moved_s = now, now_s
            if now and now_s - moved_s > 0.5:
                return
            await asyncio.sleep(0.02)


async def test_a_reader_who_stops_holds_up_a_backend_that_sends_a_gigabyte(tmp_path: Path) -> None:
    sent = 0

    async def flood(seen: Seen, context: Any) -> None:
        nonlocal sent
        await context.read()
        for _ in range(TOTAL):
            await context.write(MESSAGE)
            sent += 1

    async with backend(Flood=flood) as server:
        with router_process(tmp_path, server.address) as router:
            async with wire(router.address) as connection:
                await connection.ask(head("/a.Echo/Echo"), framed(b""))
                before_mb = router.rss_mb()
                await connection.call(head("/a.Echo/Flood"), framed(b""))
                connection.reading.clear()
                await stands_still(lambda: sent)
                assert sent < 100
                assert router.rss_mb() < before_mb + MAY_GROW_MB
                print(f"{sent} MiB sent, memory {before_mb:.0f} to {router.rss_mb():.0f} MB")  # noqa: T201
            await router.comes_to_rest()


async def test_a_backend_that_stops_holds_up_a_caller_who_sends_a_gigabyte(tmp_path: Path) -> None:
    async def stop(seen: Seen, context: Any) -> None:
        await context.read()
        await asyncio.Event().wait()

    async with backend(Stop=stop) as server:
        with router_process(tmp_path, server.address) as router:
            async with router.channel() as channel:
                await channel.unary_unary("/a.Echo/Echo")(b"")
                before_mb = router.rss_mb()
                call = channel.stream_stream("/a.Echo/Stop")()
                sent = 0

                async def send() -> None:
                    nonlocal sent
                    for _ in range(TOTAL):
                        await call.write(MESSAGE)
                        sent += 1

                sending = asyncio.create_task(send())
                await stands_still(lambda: sent)
                assert sent < 100
                assert router.rss_mb() < before_mb + MAY_GROW_MB
                print(f"{sent} MiB sent, memory {before_mb:.0f} to {router.rss_mb():.0f} MB")  # noqa: T201
                call.cancel()
                sending.cancel()
                await asyncio.wait((sending,))
            await router.comes_to_rest()


async def test_a_gigabyte_passes_through_in_little_memory(tmp_path: Path) -> None:
    async def flood(seen: Seen, context: Any) -> None:
        await context.read()
        for _ in range(TOTAL):
            await context.write(MESSAGE)

    async with backend(Flood=flood) as server:
        with router_process(tmp_path, server.address) as router:
            async with router.channel() as channel:
                await channel.unary_unary("/a.Echo/Echo")(b"")
                before_mb, highest_mb, received = router.rss_mb(), 0.0, 0
                async for message in channel.unary_stream("/a.Echo/Flood")(b""):
                    received += len(message)
                    highest_mb = max(highest_mb, router.rss_mb())
                assert received == TOTAL * len(MESSAGE)
                assert highest_mb < before_mb + MAY_GROW_MB
                print(f"1 GiB passed, memory {before_mb:.0f} to {highest_mb:.0f} MB")  # noqa: T201
