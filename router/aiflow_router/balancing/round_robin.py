"""Round robin: in turn, and as often as the weights say."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked


def round_robin(loads: Sequence[Load], _rng: random.Random, _now_s: float, asked: Asked) -> Load:
    """The endpoint that is owed most.

    Smooth weighted round robin, as nginx does it: each is owed its weight more with every call, and
    who gets the call pays for all. Weights 5, 1, 1 give a a b a c a a, and no run of five. An
    endpoint that is left out for a while neither gains nor loses.

    Knows nothing of how busy endpoints are: for calls that all cost the same.
    """
    turns = asked.memory.turns
    best, best_owed, total = loads[0], float("-inf"), 0
    for load in loads:
        weight = load.endpoint.weight
        total += weight
        owed = turns[load] = turns.get(load, 0.0) + weight
        if owed > best_owed:
            best, best_owed = load, owed
    turns[best] = best_owed - total
    return best
