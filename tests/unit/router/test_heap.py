"""Memory that malloc keeps goes back, time and again, without holding the event loop."""

import asyncio
import subprocess
import sys
import threading

import pytest

from aiflow_router import heap

# In a process of its own: in one that has much free memory already, nothing would grow. The blocks
# are as gRPC has them of an unpacked message of 100 MB, and one of 2,000 lives on.
_FREED = """
import ctypes, threading, psutil
from aiflow_router import heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def fill_and_free():
    for number, block in enumerate([libc.malloc(1040) for _ in range(100_000)]):
        if number % 2000:
            libc.free(block)

def resident_mb():
    return psutil.Process().memory_info().rss / 2**20

thread = threading.Thread(target=fill_and_free)  # With a heap of its own.
before_mb = resident_mb()
thread.start()
thread.join()
kept_mb = resident_mb() - before_mb
heap.malloc_trim()(0)
print(kept_mb, resident_mb() - before_mb)
"""


def test_what_a_thread_has_freed_but_for_a_few_blocks_goes_back() -> None:
    if heap.malloc_trim() is None:
        pytest.skip("this libc has no malloc_trim")
    out = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    kept_mb, left_mb = map(float, out.stdout.split())
    assert kept_mb > 90
    assert left_mb < 20


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
