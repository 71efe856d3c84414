"""The guard of a canary: stops a new side that is worse than the old one.

Both bounds are judged with a margin of MARGIN standard errors on both sides, so that chance does
not stop a side that is as good: the guard looks after every call, and looking often finds what is
rare. What counts is how the first candidate of a call fared, whoever answered in the end.

errors   stopped when  (p - P) - sqrt((p - l)^2 + (U - P)^2)  >  the bound
         p, P: share of calls of the new and the old side that failed; l: lower bound of p, U: upper
         bound of P, by Wilson's score. R. G. Newcombe, "Interval Estimation for the Difference
         Between Independent Proportions" (1998), method 10.
latency  stopped when  q(0.95 - m)  >  the bound * Q(0.95 + M)
         q, Q: quantiles of the answer times of the new and the old side; m, M: MARGIN * sqrt(0.95 *
         0.05 / answers), the standard error of the rank of a 95th percentile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aiflow_router.forwarding.hedge import AnswerTimes

MARGIN = 3.0
# From here on the past counts half, so that a side that was good for long and turns bad is found.
MAX_CALLS = 2000
_P95 = 0.95
# A look at the quantiles costs some 10 us, so not after each call.
LOOK_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a canary may be worse by.

    Attributes:
        errors: by how much its share of failed calls may be above the old side's; None: not judged.
        latency: how many times the old side's its 95th percentile may be; None: not judged.
        after: calls that each side must have had, and answers for `latency`.
        shadow: what would be stopped is only counted.
    """

    errors: float | None = None
    latency: float | None = None
    after: int = 50
    shadow: bool = False


@dataclass(slots=True, kw_only=True)
class Tally:
    """How one side's calls ended lately.

    Attributes:
        calls: counted, as is `failed`; the latest MAX_CALLS, roughly.
        times: of those that were answered.
    """

    calls: float = 0.0
    failed: float = 0.0
    times: AnswerTimes = field(default_factory=AnswerTimes)

    def ended(self, *, well: bool, took_s: float | None = None) -> None:
        """`took_s` is the time of an answer; None where it is not one answer, as with streams."""
        self.calls += 1
        if not well:
            self.failed += 1
        elif took_s is not None:
            self.times.add(took_s)
        if self.calls >= MAX_CALLS:
            self.calls /= 2
            self.failed /= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why a side was stopped.

    Attributes:
        reason: errors or latency.
        why: the same for a person.
        shadow: it was not, it only would have been.
    """

    reason: str
    why: str
    shadow: bool = False


def worse(new: Tally, old: Tally, guard: Guard) -> Stop | None:
    """Why the new side is to be stopped; None where it is not, or nobody knows yet."""
    if min(new.calls, old.calls) < guard.after:
        return None
    if guard.errors is not None and errors_above(new, old) > guard.errors:
        return Stop(
            reason="errors",
            why=f"{new.failed / new.calls:.1%} of its calls fail, of the old side's "
            f"{old.failed / old.calls:.1%}",
            shadow=guard.shadow,
        )
    if guard.latency is None or min(new.times.total, old.times.total) < guard.after:
        return None
    if at_least_p95_s(new.times) > guard.latency * at_most_p95_s(old.times):
        return Stop(
            reason="latency",
            why=f"its 95th percentile is {new.times.quantile_s(_P95):.3g} s, the old side's "
            f"{old.times.quantile_s(_P95):.3g} s",
            shadow=guard.shadow,
        )
    return None


def errors_above(new: Tally, old: Tally) -> float:
    """By how much more of the new side's calls fail, at the least."""
    new_share, old_share = new.failed / new.calls, old.failed / old.calls
    lowest, _ = wilson(new.failed, new.calls)
    _, highest = wilson(old.failed, old.calls)
    return new_share - old_share - math.hypot(new_share - lowest, highest - old_share)


def wilson(failed: float, calls: float) -> tuple[float, float]:
    """Between what the true share lies. E. B. Wilson, "Probable Inference" (1927)."""
    square = MARGIN * MARGIN
    share = failed / calls
    middle = share + square / (2 * calls)
    spread = MARGIN * math.sqrt(share * (1 - share) / calls + square / (4 * calls * calls))
    scale = 1 + square / calls
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def at_least_p95_s(times: AnswerTimes) -> float:
    return times.quantile_s(max(0.0, _P95 - _rank_error(times)))


def at_most_p95_s(times: AnswerTimes) -> float:
    return times.quantile_s(min(1.0, _P95 + _rank_error(times)))


def _rank_error(times: AnswerTimes) -> float:
    return MARGIN * math.sqrt(_P95 * (1 - _P95) / times.total)
