"""So much by calendar day or month, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from aiflow_router.limits.buckets import NEVER_S, Standing
from aiflow_router.limits.rule import Rule

# A clock that goes back by less is only being set right; the period that has begun goes on.
_BACK_S = 3600.0


class Quota:
    """What is used of it in the period that the time is in.

    Attributes:
        period: "2026-11-24" or "2026-11".
        used: may be more than there is, where calls cost more than they said.
        untold: the part of it that is not yet where quotas are kept.
    """

    __slots__ = ("_begins_s", "_ends_s", "_rule", "period", "untold", "used")

    def __init__(self, rule: Rule, now_s: float) -> None:
        """All times are Unix times."""
        self._rule = rule
        self.used = self.untold = 0.0
        self.period, self._begins_s, self._ends_s = period_of(_unit(rule), now_s)

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float:
        """0 where there is `cost`, else NEVER_S: nobody waits for tomorrow."""
        self._rule = rule
        self._turn(now_s)
        return 0.0 if self.used + cost <= rule.amount else NEVER_S

    def take(self, cost: float, holder: str, now_s: float) -> None:  # noqa: ARG002 - of the seam
        """After `wait_s` said 0, at the same time."""
        self.used += cost
        self.untold += cost

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None:  # noqa: ARG002
        """A call that began yesterday is settled today; that is never more than a call's cost."""
        self._turn(now_s)
        change = max(true - asked, -self.used)
        self.used += change
        self.untold += change

    def standing(self, wait_s: float, now_s: float) -> Standing:
        return Standing(
            max(0.0, self._rule.amount - self.used),
            wait_s,
            max(0.0, self._ends_s - now_s),
        )

    def idle(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        self._turn(now_s)
        return self.used == 0 and self.untold == 0

    def _turn(self, now_s: float) -> None:
        """Goes on to the period that the time is in."""
        if self._begins_s - _BACK_S <= now_s < self._ends_s:
            return
        # A clock that was far ahead, and is set right, gives nobody a new quota.
        back = now_s < self._begins_s
        self.period, self._begins_s, self._ends_s = period_of(_unit(self._rule), now_s)
        if not back:
            self.used = self.untold = 0.0


def period_of(unit: Literal["day", "month"], now_s: float) -> tuple[str, float, float]:
    """Its name, and the Unix times at which it begins and ends."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "day":
        return f"{day:%Y-%m-%d}", day.timestamp(), (day + timedelta(days=1)).timestamp()
    first = day.replace(day=1)
    after = (first + timedelta(days=32)).replace(day=1)
    return f"{first:%Y-%m}", first.timestamp(), after.timestamp()


def _unit(rule: Rule) -> Literal["day", "month"]:
    return "month" if rule.kind == "month" else "day"
