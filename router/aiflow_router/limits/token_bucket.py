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

    __slots__ = ("_at_s", "_level", "_rate_per_s", "_rule")

    def __init__(self, rule: Rule, now_s: float) -> None:
        self._rule = rule
        self._rate_per_s = rule.rate_per_s
        self._level = rule.burst
        self._at_s = now_s

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float:
        """Until `cost` is there: 0 where it is, NEVER_S where it never can be."""
        self._fill(now_s)
        if rule is not self._rule:
            self._rule, self._rate_per_s = rule, rule.rate_per_s
            self._level = min(self._level, rule.burst)
        if self._level >= cost:
            return 0.0
        if cost > rule.burst:
            return NEVER_S
        # A wait that ends a rounding error too early would be refused again.
        return max((cost - self._level) / self._rate_per_s, 1e-6)

    def take(self, cost: float, holder: str, now_s: float) -> None:  # noqa: ARG002 - of the seam
        """After `wait_s` said 0, at the same time."""
        self._level -= cost

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None:  # noqa: ARG002
        self._fill(now_s)
        self._level = min(self._level + asked - true, self._rule.burst)

    def standing(self, wait_s: float, now_s: float) -> Standing:  # noqa: ARG002 - of the seam
        level, most = self._level, self._rule.burst
        return Standing(level if level > 0 else 0.0, wait_s, (most - level) / self._rate_per_s)

    def idle(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        self._fill(now_s)
        return self._level >= self._rule.burst

    def _fill(self, now_s: float) -> None:
        passed_s = now_s - self._at_s
        if passed_s > 0:
            level, most = self._level + passed_s * self._rate_per_s, self._rule.burst
            self._level = min(most, level)
            self._at_s = now_s
