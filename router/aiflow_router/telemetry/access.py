"""The access log: one JSON line a request.

It bypasses structlog's processors, which cost more than the rest of the router's work on a call,
and gathers lines for a moment, so that a busy router makes one system call for many lines.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import orjson

FLUSH_AFTER_S = 0.05
FLUSH_AT_LINES = 256


def to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def to_shared_stderr(data: bytes) -> None:
    """Writes whole lines where other processes write to the same pipe.

    Linux keeps a write to a pipe together up to PIPE_BUF bytes; no line is longer.
    """
    descriptor = sys.stderr.fileno()
    for piece in pieces(data, at_most=select.PIPE_BUF):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def pieces(data: bytes, *, at_most: int) -> Iterator[bytes]:
    """`data` in pieces of up to `at_most` bytes that end with a line, where lines allow it."""
    start = 0
    while len(data) - start > at_most:
        end = data.rfind(b"\n", start, start + at_most) + 1 or start + at_most
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


class AccessLog:
    def __init__(self, *, write: Callable[[bytes], object] = to_stderr) -> None:
        self._write = write
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def line(
        self,
        *,
        request_id: str,
        trace_id: str,
        tenant: str,
        model: str,
        method: str,
        endpoint: str,
        attempts: int,
        code: str,
        reason: str,
        duration_s: float,
    ) -> None:
        self._lines.append(
            orjson.dumps(
                {
                    "event": "request",
                    "level": "info",
                    "timestamp": datetime.now(UTC),
                    "request_id": request_id,
                    "trace_id": trace_id,
                    "tenant": tenant,
                    "model": model,
                    "method": method,
                    "endpoint": endpoint,
                    "attempts": attempts,
                    "code": code,
                    "reason": reason,
                    "duration_ms": round(duration_s * 1000, 3),
                },
                option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z,
            )
        )
        if len(self._lines) >= FLUSH_AT_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._write(b"".join(lines))
