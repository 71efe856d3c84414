"""What became of calls: noted when they end, counted and logged together a moment later.

Counting and formatting at the end of each call costs five times as much as doing it for a hundred
calls in a row, which finds code and data in the processor's caches (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiflow_router.telemetry import access, trail
from aiflow_router.telemetry.metrics import Metrics
from aiflow_router.telemetry.trail import Trail

SETTLE_AFTER_S = 0.05
# A millisecond's work on the event loop.
SETTLE_AT = 128


class Ended(access.Ended, trail.Ended, Protocol):
    """What is counted of a call beside what is logged and kept."""

    @property
    def label(self) -> str:
        """The model or service where the router knows it."""

    @property
    def quiet(self) -> bool:
        """Not logged when it ended well."""

    @property
    def overhead_s(self) -> float | None:
        """Time spent in the router alone; None where that cannot be told."""


class Journal:
    """Lives in one event loop.

    Args:
        write: takes the lines of the access log.

    Attributes:
        trail: what became of the newest of them.
        also: is told of them too, many at once; None for nobody.
    """

    def __init__(self, *, metrics: Metrics, write: Callable[[bytes], object]) -> None:
        self.trail = Trail()
        self.also: Callable[[Sequence[Any]], object] | None = None
        self._metrics = metrics
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._ended: list[Ended] = []
        self._attempts: list[tuple[str, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        metrics.before_scrape(self.settle)

    def attempted(self, backend: str, outcome: str) -> None:
        self._attempts.append((backend, outcome))

    def ended(self, call: Ended) -> None:
        """To be told once of each call; what it says must not change any more."""
        self._ended.append(call)
        if len(self._ended) >= SETTLE_AT:
            self.settle()
        elif self._timer is None:
            self._timer = self._loop.call_later(SETTLE_AFTER_S, self.settle)

    def settle(self) -> None:
        """Counts and logs all that was noted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        attempts, self._attempts = self._attempts, []
        ended, self._ended = self._ended, []
        metrics = self._metrics
        for (backend, outcome), count in Counter(attempts).items():
            metrics.attempts(backend, outcome)(count)
        requests = Counter((call.tenant, call.label, call.code) for call in ended)
        for (tenant, label, code), count in requests.items():
            metrics.requests(tenant, label, code)(count)
        overheads_s: list[float | None] = []
        for call in ended:
            metrics.duration(call.label)(call.duration_s)
            overhead_s = call.overhead_s
            overheads_s.append(overhead_s)
            if overhead_s is not None:
                metrics.overhead(overhead_s)
        if self.also is not None:
            self.also(ended)
        # The loop's clock counts from an arbitrary moment.
        began_s = time.time() - self._loop.time()
        logged = [call for call in ended if not (call.quiet and call.code == "OK")]
        if len(logged) < len(ended):
            loud = [not (call.quiet and call.code == "OK") for call in ended]
            overheads_s = list(itertools.compress(overheads_s, loud))
        if logged:
            lines = [access.line(call, began_s=began_s) for call in logged]
            self._write(b"".join(lines))
            self.trail.keep(logged, overheads_s, lines)
