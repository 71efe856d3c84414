"""`aiflow triton` as a process: how it ends, what it leaves behind, what it refuses."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from aiflow_sdk.command.mesh import aiflow_part

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

ENDS_WITHIN_S = 45  # Triton gives requests in flight 30 s


def command(*arguments: str) -> list[str]:
    return [*aiflow_part("triton", ["triton", "--standalone", *arguments]).command]


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`aiflow triton` with arguments that it refuses."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=600, check=False
    )


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """`aiflow triton` that is ready, and the processes that it started."""
    with subprocess.Popen(
        command("--model", "detector", *arguments), stdout=subprocess.PIPE, text=True
    ) as process:
        children: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            said: dict[str, Any] = json.loads(process.stdout.readline())
            assert said["event"] == "listening"
            children = psutil.Process(process.pid).children(recursive=True)
            names = {child.name() for child in children}
            # Linux cuts the names of processes at 15 characters.
            assert {"tritonserver", "triton_python_backend_stub"[:15]} <= {n[:15] for n in names}
            yield process, children
        finally:
            process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def still_there(children: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(children, timeout=ENDS_WITHIN_S)[1]


def test_killed_it_leaves_no_process() -> None:
    with running() as (process, children):
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert still_there(children) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_ends_well_and_leaves_no_process(number: signal.Signals) -> None:
    with running() as (process, children):
        process.send_signal(number)
        assert process.wait(ENDS_WITHIN_S) == 0
        assert still_there(children) == []


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = ended("--model", "detector", "--grpc-port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"Error: cannot listen on 127.0.0.1:{port}: address already in use. Stop what uses it, or"
        " give another --grpc-port (0 takes a free one)"
    )


def test_an_unknown_model_names_the_nearest() -> None:
    done = ended("--model", "detektor")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith("holds no model 'detektor'; it has detector")
