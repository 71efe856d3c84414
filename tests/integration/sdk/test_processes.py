"""The supervisor over real child processes: ready, restart, stop, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aiflow_sdk.command.mesh import mesh
from aiflow_sdk.command.processes import Backoff, Part, StartError, Supervisor

READY = "import json, sys, time; print(json.dumps({'event': 'listening', 'grpc': 'x:1'}), flush=1);"
SLEEP = "time.sleep(600)"
FAST = Backoff(min_s=0.01, max_s=0.02)


def part(name: str, script: str, **options: float) -> Part:
    return Part(name=name, command=[sys.executable, "-c", script], **options)  # type: ignore[arg-type]


class Heard:
    """Collects what is said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def has(self, name: str, part_of_line: str) -> bool:
        return any(n == name and part_of_line in line for n, line in list(self.lines))


def until(true: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_parts_say_when_they_are_ready_and_their_lines_are_passed_on() -> None:
    heard = Heard()
    with Supervisor(say=heard) as supervisor:
        said = supervisor.start(
            [
                part("a", "import sys, time; print('log', file=sys.stderr);" + READY + SLEEP),
                part("b", READY + "print('not json {'); sys.stdout.flush();" + SLEEP),
            ]
        )
        pids = supervisor.pids()
        assert said["a"] == {"event": "listening", "grpc": "x:1"}
        until(lambda: heard.has("a", "log") and heard.has("b", "not json {"))
    assert all(gone(pid) for pid in pids.values())


def test_parts_stop_last_started_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: "
        f"(open({str(log)!r}, 'a').write(sys.argv[0] + 'NAME '), sys.exit(0)));"
    )
    with Supervisor(say=Heard()) as supervisor:
        for name in "abc":
            supervisor.start([part(name, f"{script.replace('NAME', name)}{READY}{SLEEP}")])
    assert log.read_text().replace("-c", "").split() == ["c", "b", "a"]


def test_a_crashed_part_is_started_again_and_that_is_said() -> None:
    heard = Heard()
    with Supervisor(say=heard, backoff=FAST) as supervisor:
        supervisor.start([part("a", READY + SLEEP)])
        first = supervisor.pids()["a"]
        os.kill(first, signal.SIGKILL)
        until(lambda: heard.has("a", "is ready again"))
        assert heard.has("a", "ended with signal SIGKILL; starting it again")
        assert supervisor.pids()["a"] != first


def test_a_part_that_ends_before_it_is_ready_fails_the_start_with_its_last_words() -> None:
    supervisor = Supervisor(say=Heard())
    with supervisor, pytest.raises(StartError, match="bad ended with exit code 3: port in use"):
        supervisor.start(
            [
                part("good", READY + SLEEP),
                part("bad", "import sys; print('port in use', file=sys.stderr); sys.exit(3)"),
            ]
        )
    assert supervisor.pids() == {}


def test_a_command_that_does_not_exist_is_told() -> None:
    with Supervisor(say=Heard()) as supervisor, pytest.raises(StartError, match="cannot be run"):
        supervisor.start([Part(name="a", command=["/no/such/command"])])


def test_a_part_that_is_never_ready_is_given_up_in_time() -> None:
    supervisor = Supervisor(say=Heard())
    with supervisor, pytest.raises(StartError, match=r"not ready within 0\.3 s"):
        supervisor.start([part("a", "import time;" + SLEEP, ready_s=0.3)])
    assert supervisor.pids() == {}


def test_a_part_that_ignores_the_signal_is_killed_within_the_bound() -> None:
    heard = Heard()
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    with Supervisor(say=heard, stop_s=0.3) as supervisor:
        supervisor.start([part("a", deaf + READY + SLEEP)])
        pid = supervisor.pids()["a"]
        started_s = time.monotonic()
        supervisor.close()
        assert time.monotonic() - started_s < 5
    assert gone(pid)
    assert heard.has("a", "killing it")


def test_what_a_part_started_itself_ends_with_it() -> None:
    heard = Heard()
    child = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c',"
        " 'import time; time.sleep(600)']); print('child', p.pid, flush=True);"
    )
    with Supervisor(say=heard, backoff=FAST) as supervisor:
        supervisor.start([part("a", child + READY + SLEEP)])
        until(lambda: heard.has("a", "child"))
        grandchild = int(heard.lines[0][1].split()[1])
        os.kill(supervisor.pids()["a"], signal.SIGKILL)
        until(lambda: gone(grandchild))


def test_a_killed_supervisor_leaves_no_children() -> None:
    script = f"""
import json, sys, time
from aiflow_sdk.command.processes import Part, Supervisor
supervisor = Supervisor(say=lambda *_: None)
code = {READY + SLEEP!r}
parts = [Part(name=n, command=[sys.executable, "-c", code]) for n in "abc"]
supervisor.start(parts)
print(json.dumps(supervisor.pids()), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        assert len(pids) == 3
        assert not any(gone(pid) for pid in pids.values())
        process.kill()
        until(lambda: all(gone(pid) for pid in pids.values()))


def test_a_port_in_use_is_one_clear_line_and_exit_1() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "aiflow_sdk.command", "up", "--grpc", address],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"{address}: address already in use" in done.stderr
    assert "--grpc" in done.stderr


def test_up_listens_where_the_environment_says_as_the_router_does(tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "aiflow_sdk.command", "up", "--http", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,  # without an aiflow.yaml
            env={**os.environ, "AIFLOW_LISTEN_GRPC": address},
        )
    assert done.returncode == 1
    assert f"{address}: address already in use" in done.stderr


def test_a_router_that_does_not_start_fails_the_mesh_with_nothing_left() -> None:
    # Children only: a fixture's Postgres starts processes of its own whenever it likes.
    before = {process.pid for process in psutil.Process().children()}
    with (
        pytest.raises(StartError, match="router ended with exit code"),
        mesh(
            say=Heard(),
            config=Path("/no/such/aiflow.yaml"),
            grpc="127.0.0.1:0",
            http="127.0.0.1:0",
        ),
    ):
        pass
    after = {process.pid for process in psutil.Process().children()}
    assert after <= before
