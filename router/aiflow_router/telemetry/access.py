"""The access log: one JSON line a request.

It bypasses structlog's processors, which cost more than the rest of the router's work on a call.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

import orjson


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


class Ended(Protocol):
    """What is logged of a call."""

    @property
    def request_id(self) -> str: ...

    @property
    def trace_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def asked(self) -> str:
        """The model or service as the caller wrote it."""

    @property
    def method(self) -> str: ...

    @property
    def endpoint(self) -> str:
        """Who answered, or was tried last; empty where nobody was."""

    @property
    def fallback(self) -> str:
        """Why another model than the one asked for was asked; empty where none was."""

    @property
    def attempts(self) -> int: ...

    @property
    def cache(self) -> str:
        """What its route's cache did: hit, miss or skip; empty where there is none."""

    @property
    def credits(self) -> int:
        """What it paid, in millionths of a credit."""

    @property
    def code(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def duration_s(self) -> float: ...

    @property
    def ended_s(self) -> float:
        """On a clock that read 0 at `began_s` of the epoch."""


def line(call: Ended, *, began_s: float) -> bytes:
    said = {
        "event": "request",
        "level": "info",
        "timestamp": datetime.fromtimestamp(began_s + call.ended_s, UTC),
        "request_id": call.request_id,
        "trace_id": call.trace_id,
        "tenant": call.tenant,
        "model": call.asked[:256],
        "method": call.method[:256],
        "endpoint": call.endpoint,
        "fallback": call.fallback,
        "attempts": call.attempts,
        "code": call.code,
        "reason": call.reason,
        "duration_ms": round(call.duration_s * 1000, 3),
    }
    if call.cache:
        said["cache"] = call.cache
    if call.credits:
        said["credits"] = call.credits / 1_000_000
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
