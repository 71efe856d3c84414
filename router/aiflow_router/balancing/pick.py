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
# The strategies whose sessions must not be spread by chance.
STEADY = frozenset({"session"})
