"""Slow start: an endpoint that is new, or was out, gets a small share of calls first."""

from __future__ import annotations

LEAST = 0.1
STEPS = 10


def factor(age_s: float, window_s: float) -> float:
    """The part of its share: max(0.1, age / window) as Envoy has it, in ten steps."""
    if age_s >= window_s:
        return 1.0
    return max(LEAST, int(age_s * STEPS / window_s) / STEPS)


def next_step_s(age_s: float, window_s: float) -> float:
    """The age at which `factor` grows next."""
    return (int(age_s * STEPS / window_s) + 1) * window_s / STEPS
