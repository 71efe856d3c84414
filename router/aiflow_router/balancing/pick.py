"""Picking: a strategy is a function in PICKS (its name is also in config.Balance)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from aiflow_router.balancing.batch_aware import batch_aware
from aiflow_router.balancing.least_request import least_request
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked
from aiflow_router.balancing.peak_ewma import peak_ewma
from aiflow_router.balancing.round_robin import round_robin
from aiflow_router.balancing.session import session

# Of the loads (one at least), with the time now on the loads' clock, for the call that asks.
Pick = Callable[[Sequence[Load], random.Random, float, Asked], Load]

PICKS: Mapping[str, Pick] = {
    "batch_aware": batch_aware,
    "least_request": least_request,
    "peak_ewma": peak_ewma,
    "round_robin": round_robin,
    "session": session,
}
# The strategies that want answers timed.
TIMED = frozenset({"batch_aware", "peak_ewma"})


def candidates(
    loads: Sequence[Load], *, now_s: float, tried: Sequence[Load] = ()
) -> Sequence[Load]:
    """The loads to pick from: those not tried and not cooling off.

    When all that are untried cool off they are used anyway: trying is better than refusing.
    """
    for load in loads:
        if load.cool_until_s > now_s or load in tried:
            break
    else:
        return loads
    untried = [load for load in loads if load not in tried]
    return [load for load in untried if load.cool_until_s <= now_s] or untried
