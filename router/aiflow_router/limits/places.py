"""Places for calls at the same time: each is held from when its call is let in until it ends."""

from __future__ import annotations

from aiflow_router.limits.buckets import Standing
from aiflow_router.limits.rule import Rule

# What a call is taken to last before one has ended.
FIRST_GUESS_S = 1.0
# The part that the newest call has in how long one lasts.
_NEWEST = 0.2


class Places:
    __slots__ = ("_held", "_lasts_s", "_rule")

    def __init__(self, rule: Rule, now_s: float) -> None:  # noqa: ARG002 - as every kind is made
        self._rule = rule
        self._held: dict[str, float] = {}  # By holder: since when.
        self._lasts_s = FIRST_GUESS_S

    def wait_s(self, rule: Rule, cost: float, now_s: float) -> float:  # noqa: ARG002 - a place each
        """Until one is free, by how long calls last; that is an estimate, and never 0 too early."""
        self._rule = rule
        if len(self._held) < rule.amount:
            return 0.0
        # The first is the oldest.
        oldest_s = now_s - next(iter(self._held.values()), now_s)
        return max(self._lasts_s - oldest_s, self._lasts_s / rule.amount, 0.001)

    def take(self, cost: float, holder: str, now_s: float) -> None:  # noqa: ARG002 - a place each
        """After `wait_s` said 0, at the same time."""
        self._held[holder] = now_s

    def settle(self, asked: float, true: float, holder: str, now_s: float) -> None:  # noqa: ARG002
        since_s = self._held.pop(holder, None)
        if since_s is not None:
            self._lasts_s += (now_s - since_s - self._lasts_s) * _NEWEST

    def standing(self, wait_s: float, now_s: float) -> Standing:  # noqa: ARG002 - of the seam
        free = max(0.0, self._rule.amount - len(self._held))
        return Standing(free, wait_s, self._lasts_s if self._held else 0.0)

    def idle(self, now_s: float) -> bool:  # noqa: ARG002 - of the seam
        """Whether a new one would be the same, but for how long calls last."""
        return not self._held
