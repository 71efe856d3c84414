"""A token bucket: it holds `burst` and gets `rate` a second; pure, with the time passed in.

What it grants in any time t is never more than burst + rate x t. A call that cost more than it had
asked for leaves a debt, a level below 0, that is paid back before anything is granted again.
"""

from __future__ import annotations

from aiflow_router.limits.buckets import NEVER_S, Standing
from aiflow_router.limits.rule import Rule


class TokenBucket:
    """Begins full.

    It goes by the rule it was asked by last: under another rate it keeps its level.
    """

    __slots__ = ("_at_s", "_level", "_rule")

    def __init__(self, rule: Rule, now_s: float) -> None:
        self._rule = rule
        self._level = rule.burst
        self._at_s = now_s

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float:
        """Until `cost` is there: 0 where it is, NEVER_S where it never can be."""
        level = self._filled(rule, now_s)
        if level >= cost:
            return 0.0
        if cost > rule.burst:
            return NEVER_S
        # A wait that ends a rounding error too early would be refused again.
        return max((cost - level) / rule.rate_per_s, 1e-6)

    def take(self, cost: float, holder: str, now_s: float) -> None:  # noqa: ARG002 - of the seam
        """After `wait_s` said 0, at the same time."""
        self._level -= cost

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None:  # noqa: ARG002
        self._level = min(self._filled(self._rule, now_s) + asked - true, self._rule.burst)

    def standing(self, wait_s: float, now_s: float) -> Standing:  # noqa: ARG002 - of the seam
        rule = self._rule
        return Standing(
            remaining=max(0.0, self._level),
            wait_s=wait_s,
            reset_s=(rule.burst - self._level) / rule.rate_per_s,
        )

    def idle(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        return self._filled(self._rule, now_s) >= self._rule.burst

    def _filled(self, rule: Rule, now_s: float) -> float:
        before = self._rule
        passed_s = now_s - self._at_s
        if passed_s > 0:
            self._level = min(self._level + passed_s * before.rate_per_s, before.burst)
            self._at_s = now_s
        if rule is not before:
            self._rule = rule
            self._level = min(self._level, rule.burst)
        return self._level
