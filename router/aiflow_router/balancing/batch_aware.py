"""Batch aware: one endpoint's batch is filled before another one's is begun."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aiflow_router.balancing.least_request import least_request
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked


def batch_aware(loads: Sequence[Load], rng: random.Random, now_s: float, asked: Asked) -> Load:
    """The fullest endpoint that has room in its batches and is expected to answer within the aim.

    The least busy where none is, or where no endpoint has told the size of its batches.

    Knows nothing of weights while it fills, of items within a call, and of other routers' calls
    but through the time that answers take. An endpoint that fails fast leaves its calls' places
    free, so failures count as slow answers.
    """
    filling = asked.memory.filling
    if filling is None:
        return least_request(loads, rng, now_s, asked)
    load = filling.to_fill(loads, now_s)
    if load is None:
        load = least_request(loads, rng, now_s, asked)
        filling.spread += 1
    else:
        filling.filled += 1
    filling.joined(load)
    return load
