"""The seam between what limits decide and where the buckets are: in this process, or in Redis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiflow_router.limits.rule import Ask

NEVER_S = math.inf


# Not frozen, for one is made for each rule of each call, which would cost half as much again.
@dataclass(slots=True)
class Standing:
    """How a bucket stands after a decision.

    Attributes:
        remaining: what is left in it; never below 0.
        wait_s: until what was asked would be there: 0 where it is, NEVER_S where it never can be,
            for the cost is more than the bucket holds, or the quota is used up.
        reset_s: until it is full again.
    """

    remaining: float
    wait_s: float
    reset_s: float


@dataclass(slots=True)
class Verdict:
    """Whether a call goes; `standings` are those of what was asked, in the same order.

    Attributes:
        by: what decided: "memory", "redis", "lease", or, while Redis is away, "open", "closed" or
            "share".
    """

    granted: bool
    standings: tuple[Standing, ...]
    by: str = "memory"


class Buckets(Protocol):
    """Asks of one call are granted all, or none is charged.

    An ask by a rule in shadow is charged where it can be and never decides. Nothing here waits
    for anything but a reply of Redis.
    """

    async def take(self, asks: Sequence[Ask], *, holder: str) -> Verdict:
        """`holder` is unique to the call: under it places of "concurrency" are taken and left."""

    async def look(self, asks: Sequence[Ask]) -> Verdict:
        """What `take` would say; nothing is taken."""

    def settle(self, asks: Sequence[Ask], true: Sequence[float], *, holder: str) -> None:
        """The call has ended: its places are free, and it has cost this much in truth.

        More than was there makes a debt that later calls wait for. To be told once of each call
        that was granted, of what it was charged: of all "concurrency", and of other asks where the
        cost was another one; where nothing was used (it never went anywhere) the costs are 0. Does
        not wait for Redis, and does not fail: what could not be told there is counted.
        """
