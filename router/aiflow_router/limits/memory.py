"""The buckets in this process: right for one process, and what one decision costs is microseconds.

A bucket that is full and that nobody holds is as good as a new one. Where there are more than a few
such a one is forgotten, so what is remembered grows with those who called lately, not with all who
ever did. Above MAX_BUCKETS the oldest are forgotten whatever they hold, which is counted: a caller
who invents sessions by the million must not have all the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from aiflow_router.limits.buckets import Standing, Verdict
from aiflow_router.limits.places import Places
from aiflow_router.limits.quota import Quota
from aiflow_router.limits.rule import Ask, Kind, Rule
from aiflow_router.limits.strict_log import StrictLog
from aiflow_router.limits.token_bucket import TokenBucket

MAX_BUCKETS = 500_000
# So many are kept as they are: one that fills between two calls would be made for each of them.
SPARED = 10_000
# Of each call that makes a bucket, so many older ones are looked at: all of them in turn.
_SWEPT = 4


class Bucket(Protocol):
    """One kind; times are of the clock that its kind goes by."""

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float: ...

    def take(self, cost: float, holder: str, now_s: float) -> None: ...

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None: ...

    def standing(self, wait_s: float, now_s: float) -> Standing: ...

    def idle(self, now_s: float) -> bool: ...


# Another kind of rule: here, in config.limit, and in the script of Redis.
KINDS: Mapping[Kind, Callable[[Rule, float], Bucket]] = {
    "rate": TokenBucket,
    "strict": StrictLog,
    "concurrency": Places,
    "day": Quota,
    "month": Quota,
}
_BY_CALENDAR = frozenset[Kind](("day", "month"))


class Memory:
    """Lives in one event loop. Raises nothing.

    Attributes:
        forgotten: buckets that were dropped though they were not full, for there were too many.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        most: int = MAX_BUCKETS,
        spared: int = SPARED,
    ) -> None:
        """Args: wall: for quotas, which go by the calendar; most, spared: buckets that are kept."""
        self._clock = clock
        self._wall = wall
        self._most = most
        self._spared = spared
        # With the kind and the clock of each.
        self._buckets: dict[str, tuple[Bucket, Kind]] = {}
        self._quotas: dict[str, Quota] = {}
        self._sweep: list[str] = []
        # What was used of quotas before this process began, by bucket and period.
        self._restored: Mapping[tuple[str, str], float] = {}
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._buckets)

    async def take(self, asks: Sequence[Ask], *, holder: str) -> Verdict:
        return self.decide(asks, holder)

    async def look(self, asks: Sequence[Ask]) -> Verdict:
        return self.decide(asks, None)

    def decide(self, asks: Sequence[Ask], holder: str | None) -> Verdict:
        """As `take`; nothing is taken where `holder` is None."""
        now_s = self._clock()
        buckets = self._buckets
        before = len(buckets)
        met: list[tuple[Bucket, float, float, float]] = []
        granted = True
        for ask in asks:
            rule, cost = ask.rule, ask.cost
            at_s = self._wall() if rule.kind in _BY_CALENDAR else now_s
            found = buckets.get(ask.bucket)
            # A rule of the same name may be of another kind by now.
            if found is None or found[1] != rule.kind:
                found = (self._made(ask, at_s), rule.kind)
                if holder is not None:
                    self._keep(ask.bucket, found)
            bucket = found[0]
            wait_s = bucket.wait_s(rule, cost, at_s)
            if wait_s and rule.mode == "enforce":
                granted = False
            met.append((bucket, cost, wait_s, at_s))
        if granted and holder is not None:
            for bucket, cost, wait_s, at_s in met:
                if not wait_s:
                    bucket.take(cost, holder, at_s)
        # Now that it is known which of the new ones are as good as new.
        if len(buckets) > self._spared:
            for _ in range(len(buckets) - before):
                self._make_room()
        return Verdict(
            granted, tuple([bucket.standing(wait_s, at_s) for bucket, _, wait_s, at_s in met])
        )

    def settle(self, asks: Sequence[Ask], true: Sequence[float], *, holder: str) -> None:
        now_s = self._clock()
        for ask, cost in zip(asks, true, strict=True):
            kind = ask.rule.kind
            at_s = self._wall() if kind in _BY_CALENDAR else now_s
            found = self._buckets.get(ask.bucket)
            if found is None and cost > ask.cost:  # Forgotten, for it was full; now it is not.
                found = (self._made(ask, at_s), kind)
                self._keep(ask.bucket, found)
            if found is not None and found[1] == kind:
                found[0].settle(ask.cost, cost, holder, at_s)

    def restore(self, used: Mapping[tuple[str, str], float]) -> None:
        """What is used of quotas, by bucket and period; those begin with it that are made later."""
        self._restored = used

    def quotas(self) -> list[tuple[str, Quota]]:
        """By bucket, for whoever keeps them: those with something to tell."""
        return [(name, quota) for name, quota in self._quotas.items() if quota.untold]

    def _made(self, ask: Ask, at_s: float) -> Bucket:
        bucket = KINDS[ask.rule.kind](ask.rule, at_s)
        if self._restored and isinstance(bucket, Quota):
            bucket.used = self._restored.get((ask.bucket, bucket.period), 0.0)
        return bucket

    def _keep(self, name: str, found: tuple[Bucket, Kind]) -> None:
        self._buckets[name] = found
        if isinstance(found[0], Quota):
            self._quotas[name] = found[0]
        else:  # A rule of that name was another kind before.
            self._quotas.pop(name, None)

    def _forget(self, name: str) -> None:
        del self._buckets[name]
        self._quotas.pop(name, None)

    def _make_room(self) -> None:
        """Forgets what is as good as new among a few; the oldest where there are too many."""
        for _ in range(_SWEPT):
            if not self._sweep:
                self._sweep = list(self._buckets)
                self._sweep.reverse()
                if not self._sweep:
                    return
            name = self._sweep.pop()
            found = self._buckets.get(name)
            if found is None:
                continue
            at_s = self._wall() if found[1] in _BY_CALENDAR else self._clock()
            if found[0].idle(at_s):
                self._forget(name)
        if len(self._buckets) > self._most:
            self._forget(next(iter(self._buckets)))
            self.forgotten += 1
