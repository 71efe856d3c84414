"""What a call was let in with, or why it was not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiflow_router.limits.buckets import Verdict
from aiflow_router.limits.rule import Ask


@dataclass(slots=True, kw_only=True)
class Permit:
    """Of one call.

    Attributes:
        asks: of the rules that match it, in the order of the verdict's standings.
        holder: unique to the call.
        settles: there is something to settle though all went well: a place, or a true cost.
    """

    asks: tuple[Ask, ...]
    holder: str
    verdict: Verdict
    settles: bool = True

    def charged(self) -> tuple[Ask, ...]:
        """Those that something was taken for: one in shadow that was short let the call by."""
        pairs = zip(self.asks, self.verdict.standings, strict=True)
        return tuple([ask for ask, standing in pairs if not standing.wait_s])

    def tightest(self) -> tuple[float, float, float] | None:
        """Of the rule with the smallest part left: what it holds, what is left, when it is full.

        None where no rule decides.
        """
        tightest, least = None, math.inf
        for ask, standing in zip(self.asks, self.verdict.standings, strict=True):
            rule = ask.rule
            if rule.mode == "enforce" and standing.remaining / rule.holds < least:
                least = standing.remaining / rule.holds
                tightest = (rule.holds, standing.remaining, standing.reset_s)
        return tightest
