"""A deadline on its way: what is passed on is never more than what came, and when it has passed."""

from __future__ import annotations

import math

# gRPC takes deadlines of a thousand years and more from callers, but cannot send them on.
FAR_S = 10 * 365 * 86400.0
# gRPC's clock counts milliseconds, rounded up.
_ROUNDED_S = 0.002
# The transport ends a call a little before or after our own clock says that it is due.
_CLOCK_SLACK_S = 0.005
# What a caller's own clock ends comes earlier: by the way of its head to here, and by how late that
# was read on a machine that is busy.
_CALLERS_SLACK_S = 0.05


def passed_on_s(left_s: float) -> float:
    """The time to allow a backend where the caller allows `left_s`.

    On the wire gRPC rounds up to three digits, at every hop, so that of 1.001 s it makes 1.01 s;
    what is already rounded down stays. Below a second it rounds to a millisecond.
    """
    if left_s < 1.0:
        return left_s
    left_s = min(left_s, FAR_S)
    step_s: float = 10.0 ** (math.floor(math.log10(left_s)) - 2)
    return math.floor(left_s / step_s) * step_s - _ROUNDED_S


def passed(deadline_s: float, *, now_s: float) -> bool:
    """Whether what has ended now may have ended because its time is up."""
    return now_s >= deadline_s - _CLOCK_SLACK_S


def cut_off(deadline_s: float, *, since_s: float, now_s: float) -> bool:
    """As `passed`, of what a caller ends now that began at `since_s`.

    It had at least half of its time, for who allows little may give up early in it too.
    """
    return now_s >= deadline_s - max(_CLOCK_SLACK_S, min(_CALLERS_SLACK_S, now_s - since_s))
