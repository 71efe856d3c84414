"""When a second endpoint is asked beside the first: after a fixed time, or the model's own p95."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Below this many answers nothing is known of a 95th percentile.
MIN_SAMPLES = 20
# From here on the past counts half, so that the estimate follows a model that changes.
MAX_SAMPLES = 2000
# Bounds of the buckets grow by this much, so an estimate is at most 10 % too high.
GROWTH = 1.1
_LOWEST_S = 1e-4
_BUCKETS = 160  # Up to 1e-4 * 1.1 ** 160 = 420 s.
_LOG_GROWTH = math.log(GROWTH)


@dataclass(slots=True)
class AnswerTimes:
    """How long answers take, as counts in buckets; about the latest 1,000 to 2,000 count.

    Attributes:
        p95_s: renewed every MIN_SAMPLES answers; None before the first of them.
        fresh: answers until then.
    """

    counts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)
    total: float = 0.0
    fresh: int = MIN_SAMPLES
    p95_s: float | None = None

    def add(self, took_s: float) -> None:
        index = int(math.log(max(took_s, _LOWEST_S) / _LOWEST_S) / _LOG_GROWTH)
        self.counts[min(index, _BUCKETS - 1)] += 1
        self.total += 1
        if self.total >= MAX_SAMPLES:
            self.counts = [count / 2 for count in self.counts]
            self.total /= 2
        self.fresh -= 1
        if self.fresh <= 0:
            self.fresh = MIN_SAMPLES
            if self.total >= MIN_SAMPLES:
                self.p95_s = self.quantile_s(0.95)

    def quantile_s(self, share: float) -> float:
        """The time within which `share` of the answers came."""
        left = share * self.total
        for index, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return _LOWEST_S * GROWTH ** (index + 1)
        return _LOWEST_S * GROWTH**_BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """Asks another endpoint when the first takes long.

    Attributes:
        after_s: how long; None: the 95th percentile of the answer times so far.
        times: those, where they are needed.
        shadow: it is counted and not done.
    """

    after_s: float | None
    times: AnswerTimes = field(default_factory=AnswerTimes)
    shadow: bool = False

    def delay_s(self) -> float | None:
        """None while nobody knows how long is long."""
        return self.times.p95_s if self.after_s is None else self.after_s

    def answered(self, took_s: float) -> None:
        if self.after_s is None:
            self.times.add(took_s)
