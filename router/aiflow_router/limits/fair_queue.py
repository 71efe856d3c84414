"""Who is next of those who wait: by priority, within it by fair share, and older ones move up.

Each priority is a level with start-time fair queueing (Goyal, Vin, Cheng 1996) across tenants: the
next call of a tenant starts, in virtual time, where its last one ended, or now if that is over; it
lasts its cost / the tenant's weight; the earliest start is served. So tenants that wait are served
in proportion to their weights, whoever sent more, and one that was idle is next at once. Within a
tenant it is first come, first served. Only who is served is charged: a call that leaves the queue
has cost its tenant nothing.

Who was passed by higher levels for `ages` moves up one. Each turn that goes to a higher level
counts, with the time since the turn before it, and no other time: else the old calls of a tenant
that sends too many would move up, past the new ones of a tenant that sends few. Known weakness:
where higher levels had all turns for `ages`, those who moved up go before what comes then below,
for `ages` at most.

Pure: no clock of its own. `now` may count seconds, or calls served; it does not go back. To find a
place takes log(tenants that wait) comparisons and moves the end of a list; only to count who is
ahead, each tenant that waits is looked at (0.2 us each).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# Ticks of virtual time that add up differently are the same.
SAME = 1e-9


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    """A call that waits.

    Attributes:
        weight: the tenant's share, above 0; that of the call that came last holds.
        level: 0 is served first; the queue moves it up.
        cost: what it takes of that which is waited for.
        patience: for how long it may still be passed before it moves up; None for all of the
            queue's `ages`.
        moves_up: when it does, by the clock of its level.
        number: calls that joined before it.
    """

    tenant: str = ""
    weight: float = 1.0
    level: int = 0
    cost: float = 1.0
    patience: float | None = None
    moves_up: float = 0.0
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is served before a call, if nobody comes: so many calls of this cost together."""

    calls: int
    cost: float


W = TypeVar("W", bound=Waiter)
# When in virtual time, and for equal times who came first, of which tenant.
_Turn = tuple[float, int, str]


class FairQueue(Generic[W]):
    """Has no bound: who must not grow it takes out `last()`."""

    def __init__(self, *, levels: int, ages: float) -> None:
        self.ages = ages
        self._levels: list[_Level[W]] = [_Level() for _ in range(levels)]
        self._turned = 0.0  # When the last turn was.
        self._joined = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def cost(self) -> float:
        """Of all who wait."""
        return sum(level.cost for level in self._levels)

    def join(self, waiter: W, now: float) -> None:
        """One that was in another queue before keeps the patience that it had left there."""
        if not self._size:
            self._turned = now
        waiter.number = self._joined
        self._joined += 1
        self._size += 1
        patience = self.ages if waiter.patience is None else waiter.patience
        # The turn that comes may count from the last one on, and did not keep this one waiting.
        self._place(waiter, now - self._turned + patience)

    def leave(self, waiter: W) -> None:
        """Before it was its turn."""
        level = self._levels[waiter.level]
        level.leave(waiter)
        waiter.patience = waiter.moves_up - level.clock
        self._size -= 1

    def first(self) -> W | None:
        return next((level.first() for level in self._levels if level.size), None)

    def take(self, now: float) -> W:
        """The first, whose turn it is. Raises IndexError where nobody waits."""
        waiter = self.first()
        if waiter is None:
            raise IndexError("nobody waits")
        self.serve(waiter, now)
        return waiter

    def serve(self, waiter: W, now: float) -> None:
        """It has its turn now, whether it is the first or was when its turn began."""
        self._levels[waiter.level].serve(waiter)
        self._size -= 1
        self._passed(waiter.level, now - self._turned)
        self._turned = now

    def last(self) -> W:
        """Who would be served last if nobody came. Raises IndexError where nobody waits."""
        for level in reversed(self._levels):
            if level.size:
                return level.last()
        raise IndexError("nobody waits")

    def inside(self) -> list[W]:
        """All who wait, by level and tenant."""
        return [waiter for level in self._levels for waiter in level.inside()]

    def ahead(self, waiter: W) -> Ahead:
        """Of one that waits here. Where costs of a tenant's calls differ it is an estimate."""
        above = self._levels[: waiter.level]
        beside = self._levels[waiter.level].ahead(waiter)
        return Ahead(
            calls=beside.calls + sum(level.size for level in above),
            cost=beside.cost + sum(level.cost for level in above),
        )

    def _place(self, waiter: W, patience: float) -> None:
        patience = patience if waiter.level else math.inf
        self._levels[waiter.level].join(waiter, patience=patience)

    def _passed(self, number: int, took: float) -> None:
        """All levels below that one were, for so long."""
        for level in self._levels[number + 1 :]:
            level.clock += took
            while (waiter := level.due()) is not None:
                level.leave(waiter)
                waiter.level -= 1
                self._place(waiter, self.ages)


@dataclass(slots=True, kw_only=True, eq=False)
class _Flow(Generic[W]):
    """A tenant's calls in a level.

    Attributes:
        start: of its first call, in virtual time.
        cost: of all of them.
        head: the turn of the first one, as `tail` that of the last: where it is listed.
    """

    start: float
    weight: float = 1.0
    cost: float = 0.0
    waiting: OrderedDict[W, None] = field(default_factory=OrderedDict)
    head: _Turn = (0.0, 0, "")
    tail: _Turn = (0.0, 0, "")

    def first(self) -> W:
        return next(iter(self.waiting))

    def last(self) -> W:
        return next(reversed(self.waiting))


class _Level(Generic[W]):
    """Those of one priority.

    Attributes:
        size: how many wait, as `cost` is what they cost together.
        clock: for how long it was passed by higher ones.
    """

    def __init__(self) -> None:
        self.size = 0
        self.cost = 0.0
        self.clock = 0.0
        self._flows: dict[str, _Flow[W]] = {}
        self._heads: list[_Turn] = []
        self._tails: list[_Turn] = []
        self._now = 0.0  # Virtual: the start of who was served last.
        # Where the last calls of tenants ended that wait no more, while somebody waits.
        self._ends: dict[str, float] = {}
        self._ends_bound = 64
        # By this level's clock, and of equal times who came first.
        self._ageing: list[tuple[float, int, W]] = []

    def first(self) -> W:
        return self._flows[self._heads[0][2]].first()

    def last(self) -> W:
        return self._flows[self._tails[-1][2]].last()

    def due(self) -> W | None:
        """Who moves up by now, of several the oldest."""
        while self._ageing and self._ageing[0][0] <= self.clock:
            moves_up, _, waiter = self._ageing[0]
            if self._has(waiter) and waiter.moves_up == moves_up:
                return waiter
            heapq.heappop(self._ageing)
        return None

    def inside(self) -> Iterator[W]:
        for flow in self._flows.values():
            yield from flow.waiting

    def join(self, waiter: W, *, patience: float) -> None:
        waiter.moves_up = self.clock + patience
        if patience < math.inf:
            heapq.heappush(self._ageing, (waiter.moves_up, waiter.number, waiter))
        if len(self._ageing) > 2 * self.size + 64:
            self._ageing = [item for item in self._ageing if self._has(item[2])]
            heapq.heapify(self._ageing)
        flow = self._flows.get(waiter.tenant)
        if flow is None:
            start = max(self._now, self._ends.get(waiter.tenant, 0.0))
            flow = self._flows[waiter.tenant] = _Flow(start=start)
        else:
            self._unlist(flow)
        flow.weight = waiter.weight
        flow.waiting[waiter] = None
        flow.cost += waiter.cost
        self.size += 1
        self.cost += waiter.cost
        self._list(flow, waiter.tenant)

    def leave(self, waiter: W) -> None:
        self._remove(waiter, served=False)

    def serve(self, waiter: W) -> None:
        self._now = self._heads[0][0]
        self._remove(waiter, served=True)

    def ahead(self, waiter: W) -> Ahead:
        own = self._flows[waiter.tenant]
        calls, cost = len(own.waiting) - 1, own.cost - waiter.cost
        if own.last() is not waiter:
            before = []
            for other in own.waiting:
                if other is waiter:
                    break
                before.append(other.cost)
            calls, cost = len(before), sum(before)
        start = own.start + cost / own.weight
        turn = (start, waiter.number, waiter.tenant)
        for flow in self._flows.values():
            if flow is own or flow.head >= turn:
                continue
            waiting = len(flow.waiting)
            mean = flow.cost / waiting
            earlier = waiting
            if mean > 0:
                share = (start - flow.start) * flow.weight / mean
                # Of those that start with it too, most came before.
                earlier = min(waiting, math.floor(share + SAME) + 1)
            calls += earlier
            cost += earlier * mean
        return Ahead(calls=calls, cost=cost)

    def _has(self, waiter: W) -> bool:
        flow = self._flows.get(waiter.tenant)
        return flow is not None and waiter in flow.waiting

    def _remove(self, waiter: W, *, served: bool) -> None:
        tenant = waiter.tenant
        flow = self._flows[tenant]
        self._unlist(flow)
        del flow.waiting[waiter]
        flow.cost -= waiter.cost
        self.size -= 1
        self.cost -= waiter.cost
        if served:
            flow.start += waiter.cost / flow.weight
        if flow.waiting:
            self._list(flow, tenant)
            return
        del self._flows[tenant]
        if not self._flows:
            self.cost = self._now = 0.0
            self._ends.clear()
            self._ends_bound = 64
            return
        self._ends[tenant] = flow.start
        if len(self._ends) > self._ends_bound:
            self._ends = {who: end for who, end in self._ends.items() if end > self._now}
            self._ends_bound = max(64, 2 * len(self._ends))

    def _list(self, flow: _Flow[W], tenant: str) -> None:
        first, last = flow.first(), flow.last()
        before_last = flow.cost - last.cost if first is not last else 0.0
        flow.head = (flow.start, first.number, tenant)
        flow.tail = (flow.start + before_last / flow.weight, last.number, tenant)
        insort(self._heads, flow.head)
        insort(self._tails, flow.tail)

    def _unlist(self, flow: _Flow[W]) -> None:
        del self._heads[bisect_left(self._heads, flow.head)]
        del self._tails[bisect_left(self._tails, flow.tail)]
