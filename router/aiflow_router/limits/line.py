"""The lines of those who wait for a limit: one for each bucket that was short, fair across tenants.

A call waits in one line, that of the rule it was short of for longest. Only who is first there asks
again, when by the last verdict there should be enough; so buckets are asked about twice a call that
waits, however many do, and nobody who comes later is let by. Where the first is short of something
else by then, it moves to that line, and keeps its patience.

Known weakness: a call that needs several buckets is first in one line only. Who is first in another
may take what both need; a call that costs much can so be passed by small ones of other lines.

Plain Python: `rpc` sleeps until `due_s`, asks, and tells here what came of it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aiflow_router.limits.buckets import NEVER_S, Standing, Verdict
from aiflow_router.limits.fair_queue import FairQueue, Waiter
from aiflow_router.limits.gate import PRIORITIES, Outlook, Reason, Refusal
from aiflow_router.limits.rule import Ask, Rule

# A delay to come back after: its bounds. Longer than at a gate, for a limit may be a few a minute.
SOONEST_S = 0.05
LATEST_S = 300.0
# Asked a rounding error too early, it would be asked for twice.
_LATER_S = 1e-6
# Calls that last no time would free places at no end of a rate.
_SHORTEST_S = 0.001


def _nobody() -> None:
    pass


@dataclass(slots=True, kw_only=True, eq=False)
class Place(Waiter):
    """A call's place in a line.

    Attributes:
        asks: all that it needs; `ask` is what it waits for.
        label: the model or service, for metrics.
        priority: index into PRIORITIES; its level as it came.
        deadline_s: it waits no longer.
        waits: it is in the line.
        stale: the rules it asks by are not in force any more.
        refusal: set once it was sent away.
        wake: called when its turn may have come, or one of these two is set.
    """

    asks: tuple[Ask, ...]
    ask: Ask
    label: str
    priority: int
    deadline_s: float
    waits: bool = False
    stale: bool = False
    refusal: Refusal | None = None
    wake: Callable[[], None] = field(default=_nobody, repr=False)


def waits_for(asks: Sequence[Ask], verdict: Verdict) -> Ask | None:
    """What a call that was not granted waits for; None where it is to be refused.

    That is what it would be short of for longest. It is refused where it is short of anything that
    nobody may wait for, or for which waiting does not help.
    """
    longest_s, found = 0.0, None
    for ask, standing in zip(asks, verdict.standings, strict=True):
        if not standing.wait_s or ask.rule.mode != "enforce":
            continue
        if not ask.rule.wait or standing.wait_s == NEVER_S:
            return None
        if standing.wait_s > longest_s:
            longest_s, found = standing.wait_s, ask
    return found


class Line:
    """Of one bucket.

    Attributes:
        rule: the one by which all ask who are in it.
        trying: who asks now; till it is told nobody else does.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.queue: FairQueue[Place] = FairQueue(levels=len(PRIORITIES), ages=rule.ages_s)
        self.trying: Place | None = None
        self._rate_per_s = rule.rate_per_s
        # When there was or will be nothing in the bucket, as `_next_s` is when to ask again where
        # what comes in does not come evenly.
        self._empty_s = 0.0
        self._next_s = 0.0

    def told(self, ask: Ask, standing: Standing, now_s: float) -> None:
        """What a verdict says of the bucket."""
        if ask.rule.kind == "concurrency":
            # Each place comes free once in the time that a call lasts.
            self._rate_per_s = ask.rule.amount / max(standing.reset_s, _SHORTEST_S)
        if standing.wait_s:
            self._next_s = now_s + standing.wait_s
            self._empty_s = self._next_s - ask.cost / self._rate_per_s
        else:
            self._next_s = now_s
            self._empty_s = now_s - standing.remaining / self._rate_per_s

    def settled(self, unused: float, now_s: float) -> None:
        """So much came back, or less than nothing."""
        self._empty_s -= unused / self._rate_per_s
        self._next_s = now_s

    def due_s(self, place: Place) -> float:
        """When it is to ask; never where others are first."""
        if self.trying is not None or self.queue.first() is not place:
            return math.inf
        if self.rule.kind == "rate":
            return self._empty_s + place.cost / self._rate_per_s + _LATER_S
        return self._next_s

    def wait_s(self, ahead: float, cost: float, now_s: float) -> float:
        """Until `cost` is there behind so much that goes first, by estimate."""
        return max(0.0, self._empty_s + (ahead + cost) / self._rate_per_s - now_s)


class Lines:
    """Lives in one event loop. Without a waiting call there is no line.

    Attributes:
        refused: calls that did not get their turn, by label, priority and reason.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self.refused: Counter[tuple[str, str, str]] = Counter()
        self._lines: dict[str, Line] = {}
        self._rng = rng or random.Random()  # noqa: S311 - spreads calls that come back

    def __len__(self) -> int:
        return len(self._lines)

    def behind(self, asks: Sequence[Ask], now_s: float) -> Ask | None:
        """What a new call has to line up for, of several the longest."""
        longest_s, found = -1.0, None
        for ask in asks:
            may_wait = ask.rule.wait and ask.rule.mode == "enforce"
            if may_wait and (line := self._lines.get(ask.bucket)) is not None:
                wait_s = line.wait_s(line.queue.cost, ask.cost, now_s)
                if wait_s > longest_s:
                    longest_s, found = wait_s, ask
        return found

    def join(self, place: Place, standing: Standing, now_s: float) -> Refusal | Outlook:
        """Puts it into the line of its ask, of which it has heard; what it has to expect there."""
        ask = place.ask
        line = self._lines.get(ask.bucket)
        if line is None:
            line = self._lines[ask.bucket] = Line(ask.rule)
            line.told(ask, standing, now_s)
        place.cost = ask.cost
        place.waits = True
        line.queue.join(place, now_s)
        ahead = line.queue.ahead(place)
        wait_s = line.wait_s(ahead.cost, place.cost, now_s)
        reason: Reason | None = None
        if len(line.queue) > ask.rule.queue and line.queue.last() is place:
            reason = "OVERLOADED"
        elif now_s + wait_s > place.deadline_s:
            reason = "DEADLINE_UNREACHABLE"
        if reason is not None:
            self._out(line, place)
            return self._refuse(place, reason, len(line.queue), wait_s)
        while len(line.queue) > ask.rule.queue:
            last = line.queue.last()
            late_s = line.wait_s(line.queue.cost, 0.0, now_s)
            self._out(line, last)
            last.refusal = self._refuse(last, "OVERLOADED", len(line.queue), late_s)
            last.wake()
        if line.queue.first() is place:
            place.wake()
        return Outlook(ahead=ahead.calls, wait_s=wait_s)

    def due_s(self, place: Place) -> float:
        return self._lines[place.ask.bucket].due_s(place)

    def tries(self, place: Place) -> None:
        """It asks now; nobody else of its line does until `tried`, or it has left."""
        self._lines[place.ask.bucket].trying = place

    def tried(self, place: Place, verdict: Verdict, now_s: float) -> None:
        """What it was told; where it was granted it has its place no more."""
        for ask, standing in zip(place.asks, verdict.standings, strict=True):
            found = self._lines.get(ask.bucket)
            if found is not None and found.rule is ask.rule and standing.wait_s < NEVER_S:
                found.told(ask, standing, now_s)
        if not place.waits:
            return  # It was sent away meanwhile.
        line = self._lines[place.ask.bucket]
        line.trying = None
        if verdict.granted:
            place.waits = False
            line.queue.serve(place, now_s)
            self._next(place.ask.bucket, line)

    def leave(self, place: Place, reason: Reason | None = None) -> None:
        """It goes without having been granted; counted where there is a reason."""
        self._out(self._lines[place.ask.bucket], place)
        if reason is not None:
            place.refusal = self._refuse(place, reason, 0, 0.0)

    def settled(self, asks: Sequence[Ask], true: Sequence[float], now_s: float) -> None:
        """Calls ended that had asked for this, and cost that."""
        for ask, cost in zip(asks, true, strict=True):
            line = self._lines.get(ask.bucket)
            if line is not None:
                line.settled(0.0 if ask.rule.kind == "concurrency" else ask.cost - cost, now_s)
                self._next(ask.bucket, line)

    def swap(self, rules: Iterable[Rule]) -> None:
        """Sends those away, to ask anew, whose rules are not in force any more."""
        current = {rule.name: rule for rule in rules}
        for line in [*self._lines.values()]:
            for place in line.queue.inside():
                if any(ask.rule is not current.get(ask.rule.name) for ask in place.asks):
                    place.stale = True
                    self._out(line, place)
                    place.wake()

    def outlook(
        self,
        ask: Ask,
        standing: Standing,
        *,
        tenant: str,
        weight: float,
        priority: str,
        now_s: float,
    ) -> Outlook:
        """What a call would meet that waits for this now; nothing is counted."""
        line = self._lines.get(ask.bucket)
        if line is None:
            return Outlook(ahead=0, wait_s=standing.wait_s)
        if not tenant:
            last = line.queue.last()
            tenant, weight = last.tenant, last.weight
        place = placed(
            (ask,), ask, tenant=tenant, weight=weight, priority=priority, deadline_s=math.inf
        )
        line.queue.join(place, now_s)
        ahead = line.queue.ahead(place)
        full = len(line.queue) > ask.rule.queue and line.queue.last() is place
        line.queue.leave(place)
        wait_s = line.wait_s(ahead.cost, place.cost, now_s)
        refusal = None
        if full:
            refusal = self._refusal("OVERLOADED", len(line.queue), wait_s)
        return Outlook(ahead=ahead.calls, wait_s=wait_s, refusal=refusal)

    def waiting(self) -> Mapping[str, int]:
        """By rule."""
        counts: Counter[str] = Counter()
        for line in self._lines.values():
            counts[line.rule.name] += len(line.queue)
        return counts

    def labels(self) -> Iterator[str]:
        """Of all who wait."""
        for line in self._lines.values():
            for place in line.queue.inside():
                yield place.label

    def _out(self, line: Line, place: Place) -> None:
        place.waits = False
        line.queue.leave(place)
        if line.trying is place:
            line.trying = None
        self._next(place.ask.bucket, line)

    def _next(self, bucket: str, line: Line) -> None:
        """Tells who is first now, if anybody waits."""
        first = line.queue.first()
        if first is None:
            del self._lines[bucket]
        else:
            first.wake()

    def _refuse(self, place: Place, reason: Reason, waiting: int, wait_s: float) -> Refusal:
        self.refused[place.label, PRIORITIES[place.priority], reason] += 1
        return self._refusal(reason, waiting, wait_s)

    def _refusal(self, reason: Reason, waiting: int, wait_s: float) -> Refusal:
        retry_after_s = -1.0
        if reason == "OVERLOADED":
            delay_s = wait_s * self._rng.uniform(1.0, 1.5)
            retry_after_s = min(LATEST_S, max(SOONEST_S, delay_s))
        return Refusal(reason=reason, waiting=waiting, wait_s=wait_s, retry_after_s=retry_after_s)


def placed(
    asks: tuple[Ask, ...],
    ask: Ask,
    *,
    tenant: str,
    weight: float,
    priority: str,
    deadline_s: float,
    label: str = "",
) -> Place:
    """One that can join the line of `ask`."""
    level = PRIORITIES.index(priority) if priority in PRIORITIES else 1
    return Place(
        tenant=tenant,
        weight=weight,
        level=level,
        cost=ask.cost,
        asks=asks,
        ask=ask,
        label=label,
        priority=level,
        deadline_s=deadline_s,
    )
