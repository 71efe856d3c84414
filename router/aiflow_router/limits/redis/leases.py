"""Tokens that were taken from Redis in advance, so that most calls ask nobody.

A lease is spent within `lease_s` of the question that took it, or is lost. So what passes in any
time t was taken from Redis in t + lease_s: at most burst + rate x (t + lease_s), whatever the
number of routers. What a call gives back because it cost less than it took goes back to where its
tokens came from and lives as long as the lease there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiflow_router.limits.buckets import Standing, Verdict
from aiflow_router.limits.rule import Ask, Rule

# Calls that the first lease of a bucket is for; after one that ran out early comes a bigger one.
FIRST_CALLS = 4
# A call that found others asking Redis looks again so often, then asks itself.
LOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What Redis said; `leased` is what it gave beside each cost."""

    verdict: Verdict
    leased: tuple[float, ...]


# Asks Redis for these, and for so much beside each.
Decide = Callable[[Sequence[Ask], Sequence[float]], Awaitable[Decided]]


@dataclass(slots=True)
class Lease:
    """What this process has of one bucket.

    Attributes:
        tokens: taken and not spent.
        ends_s: then they are lost.
        wanted: what was asked for last.
        asked_s: when that was.
        spent: since then.
        dry_s: until then Redis is not asked for `dry_cost` or more, for it has not as much.
        rest: what was left in Redis when it was asked last.
        full_s: when the bucket is full, as of then.
        asking: done when the question that is on its way is answered.
    """

    tokens: float = 0.0
    ends_s: float = -math.inf
    wanted: float = 0.0
    asked_s: float = -math.inf
    spent: float = 0.0
    dry_s: float = -math.inf
    dry_cost: float = math.inf
    rest: float = 0.0
    full_s: float = 0.0
    asking: asyncio.Future[None] | None = None

    def left(self, now_s: float) -> float:
        return self.tokens if now_s < self.ends_s else 0.0

    def spend(self, cost: float) -> None:
        self.tokens -= cost
        self.spent += cost

    def idle(self, now_s: float) -> bool:
        return self.asking is None and now_s >= max(self.ends_s, self.dry_s)

    def standing(self, now_s: float, *, wait_s: float = 0.0) -> Standing:
        return Standing(
            remaining=max(0.0, self.rest + self.left(now_s)),
            wait_s=wait_s,
            reset_s=max(0.0, self.full_s - now_s),
        )


def wanted(lease: Lease, ask: Ask, now_s: float) -> float:
    """What is likely to be needed in `lease_s`, and not more than the rule gives in that time."""
    rule = ask.rule
    likely = FIRST_CALLS * ask.cost
    if lease.wanted:
        elapsed_s = max(now_s - lease.asked_s, 1e-3)
        likely = max(ask.cost, lease.spent * rule.lease_s / elapsed_s)
        if elapsed_s < rule.lease_s:
            likely = max(likely, 2 * lease.wanted)
    return min(likely, rule.rate_per_s * rule.lease_s)


def pause_s(rule: Rule, draw: float) -> float:
    """How long a bucket that was found dry is left to fill, so that the next question is worth it.

    It does not fill up in that time, so nothing is lost by it. `draw` is even in [0, 1): or of all
    routers the same one would always come first, and have the most.
    """
    return min(rule.lease_s, rule.burst / rule.rate_per_s) * (0.25 + draw / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One ask of a call for which Redis is asked.

    Attributes:
        lease: None where the rule has none.
        paid: what of the cost the lease had.
        wants: the next lease.
        pause_s: until the next question, where there is not enough.
    """

    ask: Ask
    lease: Lease | None
    paid: float = 0.0
    wants: float = 0.0
    pause_s: float = 0.0

    @property
    def sent(self) -> Ask | None:
        """What is asked of Redis; None where the lease has it all."""
        if self.paid == 0.0:
            return self.ask
        if self.paid >= self.ask.cost:
            return None
        return Ask(rule=self.ask.rule, bucket=self.ask.bucket, cost=self.ask.cost - self.paid)

    def refused(self, standing: Standing, now_s: float) -> Standing:
        lease, ask = self.lease, self.ask
        if lease is None or standing.wait_s == 0 or math.isinf(standing.wait_s):
            return standing
        wait_s = max(standing.wait_s, self.pause_s)
        lease.dry_s, lease.dry_cost = now_s + wait_s, ask.cost
        return Standing(
            remaining=standing.remaining, wait_s=wait_s, reset_s=max(wait_s, standing.reset_s)
        )

    def granted(self, standing: Standing, leased: float, now_s: float) -> Standing:
        lease = self.lease
        if lease is None:
            return standing
        if standing.wait_s > 0:  # In shadow, and not charged.
            lease.spend(-self.paid)
            return standing
        per_s = lease.spent / max(now_s - lease.asked_s, 1e-3)
        # Less than was wanted, and soon spent: it would be asked for the little that came in
        # meanwhile, again and again, and who asks most would have it all.
        scarce = leased < self.wants and leased < per_s * self.pause_s
        lease.dry_s, lease.dry_cost = (now_s + self.pause_s if scarce else -math.inf), 0.0
        lease.tokens = lease.left(now_s) + leased
        lease.ends_s = now_s + self.ask.rule.lease_s
        lease.wanted, lease.asked_s, lease.spent = self.wants, now_s, self.ask.cost
        lease.rest, lease.full_s = standing.remaining, now_s + standing.reset_s
        return lease.standing(now_s)


class Leases:
    """The leases of all buckets."""

    def __init__(self, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        """Args: clock: monotonic seconds; draw: even in [0, 1)."""
        self._clock, self._draw = clock, draw
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    async def take(self, asks: Sequence[Ask], decide: Decide) -> Verdict:
        """From leases where they have enough, else by `decide`; raises what that raises."""
        if (verdict := self._paid(asks)) is not None:
            return verdict
        for _ in range(LOOKS):
            now_s = self._clock()
            parts = [self._part(ask, now_s) for ask in asks]
            short = [part for part in parts if part.sent is not None]
            if not short and (verdict := self._paid(asks)) is not None:
                return verdict
            if (refusal := _dry(parts, now_s)) is not None:
                return refusal
            asking = _asking(short)
            if asking is None:
                break
            await asyncio.wait((asking,))
        return await self._ask([self._part(ask, self._clock()) for ask in asks], decide)

    def reduced(self, asks: Sequence[Ask]) -> list[Ask]:
        """What is to be had in Redis, where leases pay what they have."""
        now_s = self._clock()
        return [
            Ask(rule=part.ask.rule, bucket=part.ask.bucket, cost=part.ask.cost - part.paid)
            for part in (self._part(ask, now_s) for ask in asks)
        ]

    def settle(self, ask: Ask, true: float) -> bool:
        """Whether the lease takes the difference; else it is Redis's."""
        lease = self._leases.get(ask.bucket) if ask.rule.lease_s > 0 else None
        more = true - ask.cost
        if lease is None or self._clock() >= lease.ends_s or lease.tokens < more:
            return False
        lease.spend(more)
        return True

    def sweep(self) -> None:
        """Forgets those from which nothing can be had."""
        now_s = self._clock()
        for bucket in [bucket for bucket, lease in self._leases.items() if lease.idle(now_s)]:
            del self._leases[bucket]

    def _paid(self, asks: Sequence[Ask]) -> Verdict | None:
        """Of a call whose leases have all that it asks; the way that most calls go."""
        now_s = self._clock()
        leases = []
        for ask in asks:
            lease = self._leases.get(ask.bucket) if ask.rule.lease_s > 0 else None
            if lease is None or now_s >= lease.ends_s or lease.tokens < ask.cost:
                return None
            leases.append(lease)
        for lease, ask in zip(leases, asks, strict=True):
            lease.spend(ask.cost)
        standings = tuple([lease.standing(now_s) for lease in leases])
        return Verdict(granted=True, standings=standings, by="lease")

    def _part(self, ask: Ask, now_s: float) -> _Part:
        if ask.rule.lease_s <= 0:
            return _Part(ask=ask, lease=None)
        lease = self._leases.get(ask.bucket)
        if lease is None:
            lease = self._leases[ask.bucket] = Lease()
        # What can never be granted is not paid in part either.
        paid = min(ask.cost, lease.left(now_s)) if ask.cost <= ask.rule.burst else 0.0
        return _Part(
            ask=ask,
            lease=lease,
            paid=paid,
            wants=wanted(lease, ask, now_s),
            pause_s=pause_s(ask.rule, self._draw()),
        )

    async def _ask(self, parts: Sequence[_Part], decide: Decide) -> Verdict:
        """Spends what leases have, and asks Redis for the rest and for new leases."""
        now_s = self._clock()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent = [(part, ask) for part in parts if (ask := part.sent) is not None]
        mine = [part.lease for part, _ in sent if part.lease and part.lease.asking is None]
        for lease in mine:
            lease.asking = answered
        _spend(parts, 1)
        decided = None
        try:
            decided = await decide([ask for _, ask in sent], [part.wants for part, _ in sent])
        finally:
            if decided is None or not decided.verdict.granted:
                _spend(parts, -1)
            for lease in mine:
                lease.asking = None
            answered.set_result(None)
        return _told(parts, sent, decided, now_s)


def _spend(parts: Sequence[_Part], sign: int) -> None:
    for part in parts:
        if part.lease is not None:
            part.lease.spend(sign * part.paid)


def _dry(parts: Sequence[_Part], now_s: float) -> Verdict | None:
    """The refusal of a call of which it is known that Redis has not enough."""
    standings, refused = [], False
    for part in parts:
        lease = part.lease
        if lease is None:
            standings.append(Standing(remaining=0.0, wait_s=0.0, reset_s=0.0))
            continue
        wait_s = 0.0
        if part.sent is not None and now_s < lease.dry_s and part.ask.cost >= lease.dry_cost:
            wait_s = lease.dry_s - now_s
            refused = refused or part.ask.rule.mode == "enforce"
        standings.append(lease.standing(now_s, wait_s=wait_s))
    return Verdict(granted=False, standings=tuple(standings), by="lease") if refused else None


def _asking(short: Sequence[_Part]) -> asyncio.Future[None] | None:
    """A question that brings what is short; None where this call has to ask anyway."""
    found = None
    for part in short:
        if part.lease is None or part.lease.asking is None:
            return None
        found = part.lease.asking
    return found


def _told(
    parts: Sequence[_Part], sent: Sequence[tuple[_Part, Ask]], decided: Decided, now_s: float
) -> Verdict:
    verdict = decided.verdict
    told = {}
    for (part, _), standing, leased in zip(sent, verdict.standings, decided.leased, strict=True):
        told[id(part)] = (
            part.granted(standing, leased, now_s)
            if verdict.granted
            else part.refused(standing, now_s)
        )
    standings = [told.get(id(part)) or (part.lease or Lease()).standing(now_s) for part in parts]
    return Verdict(granted=verdict.granted, standings=tuple(standings), by=verdict.by)
