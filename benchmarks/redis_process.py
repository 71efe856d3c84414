"""A real Redis for benchmarks: starts empty, keeps nothing, stopped at the end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from router_ways import free_port, until_listening

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def running(log: int = subprocess.DEVNULL) -> Iterator[int]:
    """Its port on 127.0.0.1."""
    found = subprocess.run(
        [str(ROOT / "deploy" / "redis.sh")], check=True, capture_output=True, text=True
    )
    port = free_port()
    command = [found.stdout.strip(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until_listening(process, port)
        yield port
    finally:
        process.terminate()
        process.wait()
