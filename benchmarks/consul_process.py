"""A real Consul of a benchmark's own, in development mode: its state is in memory."""

from __future__ import annotations

import subprocess
import sys
import threading

from aiflow_sdk.command.consul_agent import free_ports


class Agent:
    """`log` takes what it says."""

    def __init__(self, log: int) -> None:
        self._log = log
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when it has a leader."""
        command = [sys.executable, "-m", "aiflow_sdk.command.consul_agent"]
        self._process = process = subprocess.Popen(
            [*command, "--http", f"127.0.0.1:{self._port}"],
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        while b'"listening"' not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit("Consul does not start: run `deploy/consul.sh` to see why")
        # It is read on, or the agent stands still when the pipe is full.
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def kill(self) -> None:
        """As the kernel kills; the agent ends with the process that watches it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
