"""Endpoints to pick from, and a call that asks for one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiflow_router.balancing.load import Changes, Load
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.pick import PICKS
from aiflow_router.balancing.pool import Pool
from aiflow_router.catalog.endpoint import Endpoint, Protocol


@dataclass
class Asking:
    memory: Memory = field(default_factory=Memory)
    session: str = ""
    tried: Sequence[Load] = ()


def load(
    port: int, *, inflight: int = 0, weight: int = 1, cool_until_s: float = 0.0, zone: str = ""
) -> Load:
    endpoint = Endpoint(
        backend="b",
        address=f"h:{port}",
        protocol=Protocol.OIP,
        models=("m",),
        weight=weight,
        zone=zone,
    )
    return Load(endpoint=endpoint, inflight=inflight, cool_until_s=cool_until_s)


def follow(memory: Memory, loads: Sequence[Load]) -> None:
    """Tells `memory` that these are the endpoints now."""
    known = {**memory.turns, **memory.times, **memory.chances}
    memory.follow(
        joined=[item for item in loads if item not in memory.turns],
        left=[item for item in known if item not in loads],
    )


def opened(loads: Sequence[Load], *, now_s: float, tried: Sequence[Load] = ()) -> Sequence[Load]:
    """Those that may be picked."""
    return Pool(loads, changes=Changes()).open(now_s, random.Random(1), Asking(tried=tried))


def pick(
    name: str,
    loads: Sequence[Load],
    rng: random.Random | None = None,
    *,
    asking: Asking | None = None,
    now_s: float = 0.0,
) -> Load:
    return PICKS[name](loads, rng or random.Random(1), now_s, asking or Asking())
