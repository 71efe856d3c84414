"""Peak EWMA: whoever is likely to answer first."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked, Memory

# An endpoint that was never measured gets a call this often to show what it can do. In between it
# counts as slower than any other, or all calls would go there until the first answer.
CHANCE_EVERY_S = 1.0
UNMEASURED_S = 1e6


def peak_ewma(loads: Sequence[Load], rng: random.Random, now_s: float, asked: Asked) -> Load:
    """The cheaper of two drawn at random, by answer time x (calls in flight + 1) / weight.

    Peak-sensitive averages and the chance for the unmeasured are Finagle's; two choices because
    looking at all would send every caller to the same endpoint.
    """
    count = len(loads)
    if count == 1:
        return loads[0]
    index = int(rng.random() * count)
    other = int(rng.random() * (count - 1))
    first, second = loads[index], loads[other + (other >= index)]
    memory = asked.memory
    if _cost_s(second, memory, now_s) < _cost_s(first, memory, now_s):
        first = second
    if first not in memory.times:
        memory.chances[first] = now_s
    return first


def _cost_s(load: Load, memory: Memory, now_s: float) -> float:
    known = memory.times.get(load)
    if known is not None:
        answer_s = known.now(now_s)
    else:
        chance_s = memory.chances.get(load, -CHANCE_EVERY_S)
        answer_s = UNMEASURED_S if now_s < chance_s + CHANCE_EVERY_S else 0.0
    return answer_s * (load.inflight + 1) / load.endpoint.weight
