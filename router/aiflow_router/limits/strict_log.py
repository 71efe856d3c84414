"""A log of the last calls: in no time of `period_s`, wherever it begins, do more than `amount` go.

A token bucket lets a full burst go beside what comes in; of a limit of 4 a minute that would be 8.
Each call is remembered by itself, so it is for small limits.
"""

from __future__ import annotations

from aiflow_router.limits.buckets import NEVER_S, Standing
from aiflow_router.limits.rule import Rule


class StrictLog:
    __slots__ = ("_log", "_rule", "_used")

    def __init__(self, rule: Rule, now_s: float) -> None:  # noqa: ARG002 - as every kind is made
        self._rule = rule
        # By holder, in the order in which they came: when, and what it cost.
        self._log: dict[str, tuple[float, float]] = {}
        self._used = 0.0

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float:
        """Until `cost` is there: 0 where it is, NEVER_S where it never can be."""
        self._rule = rule
        self._forget(now_s)
        used = self._used
        if used + cost <= rule.amount:
            return 0.0
        if cost > rule.amount:
            return NEVER_S
        free_s = now_s
        for at_s, logged in self._log.values():
            free_s = at_s + rule.period_s
            used -= logged
            if used + cost <= rule.amount:
                break
        # A moment more, for one that is exactly a period old still counts.
        return max(free_s - now_s, 0.0) + 1e-6

    def take(self, cost: float, holder: str, now_s: float) -> None:
        """After `wait_s` said 0, at the same time."""
        self._log[holder] = (now_s, cost)
        self._used += cost

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None:  # noqa: ARG002
        if (logged := self._log.get(holder)) is None:
            return
        self._used += true - logged[1]
        if true > 0:
            self._log[holder] = (logged[0], true)
        else:
            del self._log[holder]

    def standing(self, wait_s: float, now_s: float) -> Standing:
        last_s = next((at_s for at_s, _ in reversed(self._log.values())), -NEVER_S)
        return Standing(
            max(0.0, self._rule.amount - self._used),
            wait_s,
            max(0.0, last_s + self._rule.period_s - now_s),
        )

    def idle(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        self._forget(now_s)
        return not self._log

    def _forget(self, now_s: float) -> None:
        """What is more than a period old."""
        log, before_s = self._log, now_s - self._rule.period_s
        while log:
            holder = next(iter(log))
            at_s, cost = log[holder]
            if at_s >= before_s:
                return
            del log[holder]
            self._used -= cost
        self._used = 0.0
