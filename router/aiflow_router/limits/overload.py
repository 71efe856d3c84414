"""A route's policy against overload, and the gates that it means for a name."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Literal

from aiflow_router.limits.concurrency import Gradient
from aiflow_router.limits.gate import Gate

Mode = Literal["enforce", "shadow", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """How many calls to a name may be in flight, and how many may wait.

    Attributes:
        limit: calls in flight; None to find it by gradient.
        lowest: for the gradient, as is `highest`: what it moves between.
        queue: calls that may wait.
        mode: whether it is enforced, only counted, or left out.
    """

    limit: int | None = 1024
    lowest: int = 3
    highest: int = 1024
    queue: int = 128
    mode: Mode = "enforce"


# Envoy's circuit breaker lets 1,024 in as well, and its gradient starts at 3.
DEFAULT = Overload()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Where calls to one name enter; they outlive snapshots.

    Attributes:
        unary: for calls with one request and one answer.
        stream: for streams. The same gate where the limit is fixed. A stream that lies idle would
            stop up an adaptive limit and tells nothing of the backend's speed, so there it has a
            gate of its own, as wide as the limit may grow.
        limited: whether there is a limit at all.
    """

    unary: Gate
    stream: Gate
    limited: bool = True

    def each(self) -> tuple[Gate, ...]:
        return (self.unary,) if self.stream is self.unary else (self.unary, self.stream)

    def idle(self) -> bool:
        return not any(gate.inflight or gate.waiting for gate in self.each())


def gates(overload: Overload, rng: random.Random) -> Gates:
    if overload.mode == "off":
        gate = Gate(limit=sys.maxsize, queue=0, rng=rng)
        return Gates(unary=gate, stream=gate, limited=False)
    shadow = overload.mode == "shadow"
    if overload.limit is not None:
        gate = Gate(limit=overload.limit, queue=overload.queue, rng=rng, shadow=shadow)
        return Gates(unary=gate, stream=gate)
    gradient = Gradient(lowest=overload.lowest, highest=overload.highest, rng=rng)
    return Gates(
        unary=Gate(limit=0, queue=overload.queue, rng=rng, gradient=gradient),
        stream=Gate(limit=overload.highest, queue=overload.queue, rng=rng),
    )
