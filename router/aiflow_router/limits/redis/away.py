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
_OPEN = Standing(remaining=math.inf, wait_s=0.0, reset_s=0.0)
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


@dataclass(frozen=True, slots=True)
class _Held:
    """What a call was granted of the shares: the asks, and which of the call's they are."""

    asks: tuple[Ask, ...]
    places: tuple[int, ...]


class Away:
    """Decides while Redis does not, each ask by what its rule says.

    Attributes:
        seat: may change at any time; shares that were dealt out stay as they are.
    """

    def __init__(self, local: Buckets) -> None:
        self.seat = Seat()
        self._local = local
        self._held: dict[str, _Held] = {}
        self._shares: dict[Rule, Rule | None] = {}
        self._shares_of = self.seat

    async def take(self, asks: Sequence[Ask], *, holder: str) -> Verdict:
        held, standings, closed = self._sorted(asks)
        if closed:
            return Verdict(granted=False, standings=tuple(standings), by="closed")
        if not held.asks:
            # Remembered too: nothing was charged, so nothing is to be settled.
            self._held[holder] = held
            return Verdict(granted=True, standings=tuple(standings), by="open")
        verdict = await self._local.take(held.asks, holder=holder)
        if verdict.granted:
            self._held[holder] = held
        return _filled(verdict, held, standings)

    async def look(self, asks: Sequence[Ask]) -> Verdict:
        held, standings, closed = self._sorted(asks)
        if closed or not held.asks:
            by = "closed" if closed else "open"
            return Verdict(granted=not closed, standings=tuple(standings), by=by)
        return _filled(await self._local.look(held.asks), held, standings)

    def settle(self, true: Sequence[float], *, holder: str) -> bool:
        """Whether the call was granted here."""
        held = self._held.pop(holder, None)
        if held is None:
            return False
        self._local.settle(held.asks, [true[place] for place in held.places], holder=holder)
        return True

    def _sorted(self, asks: Sequence[Ask]) -> tuple[_Held, list[Standing], bool]:
        """The asks of shares, how the others stand, and whether one of those is refused."""
        standings = [_OPEN] * len(asks)
        mine: list[Ask] = []
        places: list[int] = []
        closed = False
        for place, ask in enumerate(asks):
            rule = self._share(ask.rule) if ask.rule.away == "share" else None
            if rule is not None:
                mine.append(Ask(rule=rule, bucket=ask.bucket, cost=ask.cost))
                places.append(place)
            elif ask.rule.away != "open":
                standings[place] = _CLOSED
                closed = closed or ask.rule.mode == "enforce"
        return _Held(tuple(mine), tuple(places)), standings, closed

    def _share(self, rule: Rule) -> Rule | None:
        if self._shares_of != self.seat or len(self._shares) > 10_000:
            self._shares.clear()
            self._shares_of = self.seat
        if rule not in self._shares:
            self._shares[rule] = share(rule, self.seat)
        return self._shares[rule]


def _filled(verdict: Verdict, held: _Held, standings: list[Standing]) -> Verdict:
    for place, standing in zip(held.places, verdict.standings, strict=True):
        standings[place] = standing
    return Verdict(granted=verdict.granted, standings=tuple(standings), by="share")
