"""What is decided while Redis is away: nothing, everything, or this router's share of a rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from aiflow_router.limits.buckets import Buckets, Standing, Verdict
from aiflow_router.limits.rule import Ask, Rule

# When who is refused because Redis is away may come again: connecting is tried as often at least.
COME_AGAIN_S = 2.0
# As many as policies have rules, and more.
MOST_SHARES = 10_000
# Calls that were let go and may be settled yet.
MOST_GRANTED = 50_000
_CLOSED = Standing(remaining=0.0, wait_s=COME_AGAIN_S, reset_s=COME_AGAIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """This router among those that were alive lately.

    Attributes:
        of: how many there are, with this one.
        rank: how many of them come before it; all know the same order.
    """

    of: int = 1
    rank: int = 0


def share(rule: Rule, seat: Seat) -> Rule | None:
    """What of a rule is this router's; None where nothing is.

    The shares of all routers make the rule and no more. What cannot be cut, as calls, is dealt out
    whole: of 5 places among 3 routers two have 2 and one has 1; of a rule with a burst of 2 calls
    two have half of it and the third has nothing.
    """
    if seat.of <= 1:
        return rule
    if rule.kind == "rate":
        holders = seat.of
        if rule.unit == "calls":
            holders = min(seat.of, max(1, math.floor(rule.burst)))
        if seat.rank >= holders:
            return None
        return dataclasses.replace(
            rule, amount=rule.amount / holders, burst=rule.burst / holders, lease_s=0.0
        )
    if rule.unit != "calls":
        return dataclasses.replace(rule, amount=rule.amount / seat.of)
    each, rest = divmod(math.floor(rule.amount), seat.of)
    amount = each + (seat.rank < rest)
    return dataclasses.replace(rule, amount=float(amount)) if amount else None


class Away:
    """Decides while Redis does not, each ask by what its rule says.

    Attributes:
        seat: may change at any time; shares that were dealt out stay as they are.
    """

    def __init__(self, local: Buckets) -> None:
        self.seat = Seat()
        self._local = local
        # What calls were granted of the shares, by holder; also of those that were granted nothing,
        # for of them nothing is to be settled elsewhere. Many are never settled, for they cost what
        # they asked for: the oldest are forgotten.
        self._granted: dict[str, tuple[Ask, ...]] = {}
        self._shares: dict[Rule, Rule | None] = {}
        self._shares_of = self.seat

    async def take(self, asks: Sequence[Ask], *, holder: str) -> Verdict:
        parted = self._parted(asks)
        if parted.closed:
            return Verdict(granted=False, standings=tuple(parted.standings), by="closed")
        mine = tuple(parted.mine.values())
        if not mine:
            self._remember(holder, ())
            return Verdict(granted=True, standings=tuple(parted.standings), by="open")
        verdict = await self._local.take(mine, holder=holder)
        if verdict.granted:
            self._remember(holder, mine)
        return parted.filled(verdict)

    async def look(self, asks: Sequence[Ask]) -> Verdict:
        parted = self._parted(asks)
        if parted.closed or not parted.mine:
            by = "closed" if parted.closed else "open"
            return Verdict(granted=not parted.closed, standings=tuple(parted.standings), by=by)
        return parted.filled(await self._local.look(tuple(parted.mine.values())))

    def settle(self, asks: Sequence[Ask], true: Sequence[float], *, holder: str) -> bool:
        """Whether the call was granted here."""
        granted = self._granted.pop(holder, None)
        if granted is None:
            return False
        costs = {ask.bucket: cost for ask, cost in zip(asks, true, strict=True)}
        settled = [ask for ask in granted if ask.bucket in costs]
        self._local.settle(settled, [costs[ask.bucket] for ask in settled], holder=holder)
        return True

    def _remember(self, holder: str, granted: tuple[Ask, ...]) -> None:
        self._granted[holder] = granted
        if len(self._granted) > MOST_GRANTED:
            del self._granted[next(iter(self._granted))]

    def _parted(self, asks: Sequence[Ask]) -> _Parted:
        parted = _Parted([], {})
        for place, ask in enumerate(asks):
            away = ask.rule.away
            share = self._share(ask.rule) if away == "share" else None
            if share is not None:
                parted.mine[place] = Ask(rule=share, bucket=ask.bucket, cost=ask.cost)
            if away == "open" or share is not None:
                parted.standings.append(_open(ask.rule))
            else:
                parted.standings.append(_CLOSED)
                parted.closed = parted.closed or ask.rule.mode == "enforce"
        return parted

    def _share(self, rule: Rule) -> Rule | None:
        if self._shares_of != self.seat or len(self._shares) > MOST_SHARES:
            self._shares.clear()
            self._shares_of = self.seat
        if rule not in self._shares:
            self._shares[rule] = share(rule, self.seat)
        return self._shares[rule]


@dataclass(slots=True)
class _Parted:
    """What a call asks: `mine` of this router's shares, by place; how the rest stands.

    Attributes:
        closed: the rest has one that is refused.
    """

    standings: list[Standing]
    mine: dict[int, Ask]
    closed: bool = False

    def filled(self, verdict: Verdict) -> Verdict:
        for place, standing in zip(self.mine, verdict.standings, strict=True):
            self.standings[place] = standing
        return Verdict(granted=verdict.granted, standings=tuple(self.standings), by="share")


def _open(rule: Rule) -> Standing:
    """Of a bucket that nobody counts: as if it were full."""
    full = rule.burst if rule.kind == "rate" else rule.amount
    return Standing(remaining=full, wait_s=0.0, reset_s=0.0)
