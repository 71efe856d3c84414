"""`aiflow up` as a process of its own, with a stand-in for the router: signals and what is left."""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import psutil
import pytest

# The router is another room's; here a test server in a process of its own takes its place.
ROUTER = """
import json, signal, sys, threading
from aiflow_sdk.testing import serving
for number in DEAF:
    signal.signal(number, signal.SIG_IGN)
if not DEAF:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with serving({"detector": dict}) as server:
    ready = {"event": "listening", "grpc": server.address, "http": "127.0.0.1:1"}
    print(json.dumps(ready), flush=True)
    while True:
        threading.Event().wait(0.05)
"""

UP = """
import sys
from aiflow_sdk.command import main, mesh, processes

def router(name, arguments, environment=None, *, ready_s=60.0):
    return processes.Part(name=name, command=[sys.executable, "-c", ROUTER], ready_s=ready_s)

mesh.aiflow_part = router
main.main(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--without", "triton",
           "--without", "imaging", "--without", "geometry"], prog_name="aiflow")
"""


@dataclass
class Up:
    process: subprocess.Popen[str]
    children: list[psutil.Process]
    welcome: str

    def stderr_has(self, words: str) -> None:
        stream = self.process.stderr
        assert stream is not None
        while words not in _line(stream):
            pass

    def left(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.children, timeout=10)
        return alive


@contextlib.contextmanager
def up(*, deaf: bool = False) -> Iterator[Up]:
    router = ROUTER.replace("DEAF", "[signal.SIGTERM]" if deaf else "[]")
    script = UP.replace("ROUTER", repr(router))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        children: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            welcome = ""
            while "Ctrl-C" not in welcome:
                welcome += _line(process.stdout)
            children = psutil.Process(process.pid).children(recursive=True)
            yield Up(process, children, welcome)
        finally:
            process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def _line(stream: IO[str]) -> str:
    line = stream.readline()
    assert line, "it ended"
    return line


def test_an_agent_that_nobody_would_ask_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aiflow_sdk.command", "up", "--consul", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--consul has no effect without --discovery consul" in done.stderr


def test_it_says_where_things_are_and_a_first_call_to_try() -> None:
    with up() as running:
        assert len(running.children) == 1
        address = re.search(r"gRPC +(127\.0\.0\.1:\d+)", running.welcome)
        assert address is not None
        # The stand-in says nothing about what its model takes.
        assert f"aiflow status --router {address[1]}" in running.welcome


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_cleanly(number: signal.Signals) -> None:
    with up() as running:
        running.process.send_signal(number)
        assert running.process.wait(timeout=15) == 0
        assert running.left() == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads are named as Linux does")
def test_a_signal_that_another_thread_is_given_counts_as_well() -> None:
    """Which the kernel may do; Python handles it in the main thread, and has to wake that."""
    with up(deaf=True) as running:
        pid = running.process.pid
        other = next(one.id for one in psutil.Process(pid).threads() if one.id != pid)
        tgkill = ctypes.CDLL(None).tgkill
        assert tgkill(pid, other, signal.SIGTERM) == 0
        running.stderr_has("once more to stop at once")
        assert tgkill(pid, other, signal.SIGTERM) == 0
        assert running.process.wait(timeout=10) == 128 + signal.SIGTERM
        assert running.left() == []


def test_a_second_signal_stops_everything_at_once() -> None:
    with up(deaf=True) as running:
        running.process.send_signal(signal.SIGINT)
        running.stderr_has("once more to stop at once")
        started_s = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=15) == 130
        assert time.monotonic() - started_s < 5  # and not the 15 s of patience
        assert running.left() == []


def test_killed_with_sigkill_it_leaves_nothing_running() -> None:
    with up() as running:
        running.process.kill()
        assert running.left() == []
