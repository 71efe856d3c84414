"""How many calls may be at a backend at once, found from how long its answers take.

The rule is that of Envoy's gradient controller (its adaptive concurrency filter):

    gradient  = baseline x (1 + buffer) / recent, within 0.5 to 2
    new limit = gradient x limit + sqrt(limit)

`recent` is the mean answer time of the last window, `baseline` that of calls which had the backend
nearly to themselves. On a backend that works on C calls at once the limit settles where it equals
C x 1.25 plus its own root: enough in the queue to keep the backend busy, hardly more. Netflix's
Gradient2 needs no baseline measured on purpose, but under lasting overload its long-term average
learns the overload, and the limit creeps up; so it is not what is used here.

What differs from Envoy: the mean instead of the median, because calls in flight are rate x mean
(Little's law); a window lasts two answers at least, so each step sees the effect of the last one;
calls in quiet times refresh the baseline for free, and only where none did is the limit lowered to
`min` for ten answers, a twentieth of the time at most; timeouts and refusals shrink the limit.

Known weaknesses. Until the next look at the baseline (a minute) a backend that became slower for
good is taken for an overloaded one. A server that batches answers single calls faster than full
batches, so its limit is found on the low side: give it a higher `min`. Calls of very different
length, or other callers beside this process, are noise.
"""

from __future__ import annotations

import enum
import math
import random

# How much longer than the baseline an answer may take without being called queueing.
BUFFER = 0.25
# Answers that make a baseline.
BASELINE_ANSWERS = 10
BASELINE_EVERY_S = 60.0
# Of the time at most one part in so many is spent at `min`, which counts where answers are slow.
BASELINE_SHARE = 20
# A window lasts until it has seen so many calls, so long, and so many times the baseline.
WINDOW_CALLS = 10
WINDOW_S = 0.1
WINDOW_BASELINES = 2.0


class End(enum.Enum):
    """How a call left the backend, as far as the limit cares."""

    ANSWERED = enum.auto()
    TIMED_OUT = enum.auto()
    REFUSED = enum.auto()  # By the backend, as too much.
    OTHER = enum.auto()  # Says nothing: cancelled, wrong input, a broken connection.


def next_limit(limit: float, *, baseline_s: float, recent_s: float, dropped: float) -> float:
    """The limit after a window.

    Args:
        limit: before it.
        baseline_s: answer time with hardly any load.
        recent_s: mean answer time in the window; 0 where nothing was answered.
        dropped: the share of the window's calls that timed out or were refused, 0 to 1.
    """
    gradient = 1.0
    if recent_s > 0:
        gradient = min(2.0, max(0.5, baseline_s * (1 + BUFFER) / recent_s))
    if dropped:
        return limit * max(0.5, min(gradient, 1 - dropped))
    return limit * gradient + math.sqrt(limit)


class Gradient:
    """The limit on calls to one name; `current` is what holds now.

    It is told of every call that ends, with the number in flight (that call included). Windows
    count only calls that ended while half of the limit or more was in use, so a lack of traffic
    neither shrinks nor grows it.
    """

    def __init__(self, *, lowest: int, highest: int, rng: random.Random) -> None:
        self.lowest = lowest
        self.highest = highest
        self.current = lowest
        self.baseline_s = 0.0  # None measured yet.
        self._limit = float(lowest)
        self._rng = rng
        # The baseline's calls: none may have had more than `lowest` in flight during its life.
        self._busy_at_s = -math.inf
        self._quiet = _Sum()
        self._baseline_due_s = math.inf
        self._looking_since_s: float | None = None
        self._window = _Sum()
        self._dropped = 0

    def ended(self, end: End, took_s: float, now_s: float, inflight: int) -> None:
        """A call ended after `took_s` at the backend."""
        if inflight > self.lowest:
            self._busy_at_s = now_s
        elif end is End.ANSWERED and now_s - took_s > self._busy_at_s:
            self._quiet.add(took_s, now_s)
            if self._quiet.count >= BASELINE_ANSWERS:
                self._measured(now_s)
        if self._looking_since_s is not None or not self.baseline_s or 2 * inflight < self.current:
            return
        if end is End.ANSWERED:
            self._window.add(took_s, now_s)
        elif end is End.REFUSED or (end is End.TIMED_OUT and took_s >= self.baseline_s):
            # Less than an answer takes unhindered is the caller's haste, not the backend's load.
            self._dropped += 1
            self._window.begin(now_s)
        if self._window.count + self._dropped >= WINDOW_CALLS:
            lasts_s = max(WINDOW_S, WINDOW_BASELINES * self.baseline_s)
            if now_s >= self._window.since_s + lasts_s:
                self._step(now_s)

    def _step(self, now_s: float) -> None:
        window, dropped = self._window, self._dropped
        limit = next_limit(
            self._limit,
            baseline_s=self.baseline_s,
            recent_s=window.mean_s(),
            dropped=dropped / (window.count + dropped),
        )
        self._limit = min(float(self.highest), max(float(self.lowest), limit))
        self._window, self._dropped = _Sum(), 0
        if now_s >= self._baseline_due_s and self._limit > self.lowest:
            self._looking_since_s = now_s
            self._quiet = _Sum()
            self.current = self.lowest
        else:
            self.current = int(self._limit)

    def _measured(self, now_s: float) -> None:
        self.baseline_s = self._quiet.mean_s()
        self._quiet = _Sum()
        spent_s = 0.0
        if self._looking_since_s is not None:
            spent_s = now_s - self._looking_since_s
            self._looking_since_s = None
            self.current = int(self._limit)
        # Not all names and routers at the same moment.
        pause_s = max(BASELINE_EVERY_S, BASELINE_SHARE * spent_s)
        self._baseline_due_s = now_s + pause_s * self._rng.uniform(0.9, 1.1)


class _Sum:
    """Answer times added up since the first of them."""

    __slots__ = ("count", "since_s", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.since_s = math.inf

    def begin(self, now_s: float) -> None:
        self.since_s = min(self.since_s, now_s)

    def add(self, took_s: float, now_s: float) -> None:
        self.begin(now_s)
        self.count += 1
        self.total_s += took_s

    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0
