"""A deadline on its way: what is passed on is never more than what came."""

from __future__ import annotations

import math

# gRPC takes deadlines of a thousand years and more from callers, but cannot send them on.
FAR_S = 10 * 365 * 86400.0
# gRPC's clock counts milliseconds, rounded up.
_ROUNDED_S = 0.002


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
