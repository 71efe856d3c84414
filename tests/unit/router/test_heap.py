"""Memory that malloc keeps goes back, time and again, without holding the event loop."""

import asyncio
import ctypes
import threading

import psutil
import pytest

from aiflow_router import heap

BLOCKS, BLOCK = 100_000, 1040  # As gRPC has them of an unpacked message of 100 MB.
PINNED = 2000  # One of so many lives on.


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def test_what_a_thread_has_freed_but_for_a_few_blocks_goes_back() -> None:
    trim = heap.malloc_trim()
    if trim is None:
        pytest.skip("this libc has no malloc_trim")
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def fill_and_free() -> None:
        blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
        for number, block in enumerate(blocks):
            if number % PINNED:
                libc.free(block)

    thread = threading.Thread(target=fill_and_free)  # With a heap of its own.
    before_mb = resident_mb()
    thread.start()
    thread.join()
    kept_mb = resident_mb()
    trim(0)
    assert kept_mb - before_mb > 90
    assert resident_mb() - before_mb < 20


async def test_it_is_given_back_again_and_again_off_the_loop() -> None:
    asked: list[tuple[int, str]] = []
    thrice = asyncio.Event()
    loop = asyncio.get_running_loop()

    def trim(spare: int) -> int:
        asked.append((spare, threading.current_thread().name))
        if len(asked) == 3:
            loop.call_soon_threadsafe(thrice.set)
        return 1

    task = asyncio.create_task(heap.given_back(trim, every_s=0.001))
    await asyncio.wait_for(thrice.wait(), 5)
    task.cancel()
    assert {spare for spare, _ in asked} == {0}
    assert threading.main_thread().name not in {name for _, name in asked}
