"""How long an endpoint takes to answer, as one number that rises at once and falls slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiflow_router.balancing.outcome import FAULTS

# After this long without a new measurement 37 % of the old one is left.
DECAY_S = 10.0
# A failure counts as an answer that took this long at least, and twice as long as usual at least:
# failing fast must not look like being fast.
FAILED_S = 1.0
MAX_FAILED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTime:
    """A peak-sensitive moving average.

    Attributes:
        average_s: when it was last measured.
        at_s: when that was.
    """

    average_s: float
    at_s: float

    def now(self, now_s: float) -> float:
        """What is left of it: old knowledge fades, so a slow endpoint gets its chance again."""
        return self.average_s * math.exp(min(0.0, self.at_s - now_s) / DECAY_S)


def counted_s(*, outcome: str, took_s: float, usual_s: float | None) -> float | None:
    """What an attempt that ended so counts as; None where it says nothing.

    An outcome that is neither an answer nor a fault says that an answer would have taken at least
    this long, not that the endpoint is fast.
    """
    if outcome in FAULTS:
        return max(took_s, min(max(FAILED_S, 2 * (usual_s or 0.0)), MAX_FAILED_S))
    if outcome != "OK" and (usual_s is None or took_s <= usual_s):
        return None
    return took_s


def observed(
    known: AnswerTime | None, *, outcome: str, took_s: float, now_s: float
) -> AnswerTime | None:
    """What is known after an attempt that ended so; None while nothing is."""
    usual_s = None if known is None else known.average_s
    counted = counted_s(outcome=outcome, took_s=took_s, usual_s=usual_s)
    if counted is None:
        return known
    if known is None or counted >= known.average_s:
        return AnswerTime(average_s=counted, at_s=now_s)
    kept = math.exp(min(0.0, known.at_s - now_s) / DECAY_S)
    return AnswerTime(average_s=known.average_s * kept + counted * (1 - kept), at_s=now_s)
