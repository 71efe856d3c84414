"""Least request: the least busy endpoint for its weight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked

# Up to here looking at every endpoint is cheaper than drawing two.
FULL_SCAN = 3


def least_request(loads: Sequence[Load], rng: random.Random, _now_s: float, _asked: Asked) -> Load:
    """The least busy for its weight: of all where they are few, else of two drawn at random.

    Power of two choices: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"
    (2001). Ties are broken at random, or the first endpoint would get every call of a quiet hour.
    """
    count = len(loads)
    if count == 1:
        return loads[0]
    if count > FULL_SCAN:
        first = int(rng.random() * count)
        second = int(rng.random() * (count - 1))
        loads = (loads[first], loads[second + (second >= first)])
    best, best_score, ties = loads[0], _score(loads[0]), 1
    for load in loads[1:]:
        score = _score(load)
        if score < best_score:
            best, best_score, ties = load, score, 1
        elif score == best_score:
            ties += 1
            if rng.random() * ties < 1:
                best = load
    return best


def _score(load: Load) -> float:
    return (load.inflight + 1) / load.endpoint.weight
