"""The ways to the backend: processes that listen, and what they cost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import router_peers
from router_backend import TYPED

HERE = Path(__file__).parent
KEY = "benchmark"
READY_S = 60.0

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
auth: {{mode: required, keys: [{{name: bench, tenant: bench, sha256: {digest}}}]}}
discovery:
  static:
    - {{backend: oip, address: '{backend}', protocol: oip, models: [m]}}
    - {{backend: typed, address: '{backend}', protocol: grpc, services: [{typed}]}}
limits:
  - {{name: platform, rate: 100000/s}}
  - {{name: tenant, per: [tenant], rate: 50000/s}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to the backend, and the process whose CPU time is its price."""

    address: str
    process: psutil.Process
    popen: subprocess.Popen[str]

    def tell(self, line: str) -> None:
        """Writes to the process's standard input."""
        assert self.popen.stdin is not None  # noqa: S101 - it is a pipe
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        """The next line of its standard output."""
        assert self.popen.stdout is not None  # noqa: S101 - it is a pipe
        return self.popen.stdout.readline()

    def memory_bytes(self) -> int:
        """What is resident."""
        return int(self.process.memory_info().rss)

    def cpu_s(self) -> float:
        spent = self.process.cpu_times()
        return spent.user + spent.system


def start(stack: contextlib.ExitStack, folder: Path) -> Mapping[str, Way]:
    """Starts everything; the stack stops it."""
    python = [sys.executable]
    backend = stack.enter_context(running([*python, str(HERE / "router_backend.py")]))
    ways = {
        "direct": backend,
        "bare": stack.enter_context(
            running([*python, str(HERE / "passthrough.py"), backend.address])
        ),
        "full": stack.enter_context(full(folder, backend.address)),
    }
    if envoy := router_peers.envoy():
        port = free_port()
        config = folder / "envoy.yaml"
        config.write_text(router_peers.envoy_config(port=port, backend=backend.address))
        quiet = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
        ways["envoy"] = stack.enter_context(
            running([str(envoy), "-c", str(config), *quiet], port=port)
        )
    if nginx := router_peers.nginx():
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(
            router_peers.nginx_config(port=port, backend=backend.address, folder=folder)
        )
        ways["nginx"] = stack.enter_context(
            running([str(nginx), "-p", str(folder), "-c", str(config)], port=port)
        )
    return ways


@contextlib.contextmanager
def full(folder: Path, backend: str) -> Iterator[Way]:
    """The router with its policies on."""
    config = folder / "aiflow.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    config.write_text(CONFIG.format(digest=digest, backend=backend, typed=TYPED))
    aiflow = Path(sys.executable).with_name("aiflow")
    with (folder / "access.log").open("wb") as log:
        command = [str(aiflow), "router", "--config", str(config)]
        with running(command, log=log.fileno()) as way:
            yield way


@contextlib.contextmanager
def running(
    command: list[str],
    *,
    port: int = 0,
    log: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Way]:
    """A process that prints its address, or listens on `port`; stopped at the end."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if port:
            address = f"127.0.0.1:{port}"
            until_listening(process, port)
        else:
            line = process.stdout.readline().strip()
            address = json.loads(line)["grpc"] if line.startswith("{") else line
        yield Way(address=address, process=psutil.Process(process.pid), popen=process)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_listening(process: subprocess.Popen[Any], port: int) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
