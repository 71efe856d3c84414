"""A route's policy against overload, and the gates that it means for a name."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from typing import Literal

from aiflow_router.limits.concurrency import Gradient
from aiflow_router.limits.gate import Gate, Shape

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """Gates for other settings, to be put in the place of those in use.

    Attributes:
        gates: what calls enter from then on.
        shapes: what the gates that stay are to be given in that moment.
    """

    gates: Gates
    shapes: tuple[tuple[Gate, Shape], ...] = ()

    def begin(self, now_s: float) -> Gates:
        for gate, shape in self.shapes:
            gate.reshape(shape, now_s)
        return self.gates


def gates(overload: Overload, rng: random.Random) -> Gates:
    unary, stream = _shapes(overload, rng)
    gate = _gate(unary, rng)
    return Gates(
        unary=gate,
        stream=gate if stream is None else _gate(stream, rng),
        limited=overload.mode != "off",
    )


def succeeding(found: Gates, overload: Overload, rng: random.Random) -> Succession:
    """By `overload`, with the calls that are inside `found` and in its line.

    An adaptive limit does not count streams, and others do. Where one follows the other the calls
    in `found` stay apart: they leave by where they came in, and as many again may enter here.
    """
    unary, stream = _shapes(overload, rng)
    if (stream is None) != (found.stream is found.unary):
        return Succession(gates=gates(overload, rng))
    kept = replace(found, limited=overload.mode != "off")
    if stream is None:
        return Succession(gates=kept, shapes=((kept.unary, unary),))
    return Succession(gates=kept, shapes=((kept.unary, unary), (kept.stream, stream)))


def _shapes(overload: Overload, rng: random.Random) -> tuple[Shape, Shape | None]:
    """Of the gate for unary calls, and of that for streams where it is another one."""
    if overload.mode == "off":
        return Shape(limit=sys.maxsize, queue=0), None
    queue = overload.queue
    if overload.limit is not None:
        return Shape(limit=overload.limit, queue=queue, shadow=overload.mode == "shadow"), None
    gradient = Gradient(lowest=overload.lowest, highest=overload.highest, rng=rng)
    return (
        Shape(limit=overload.lowest, queue=queue, gradient=gradient),
        Shape(limit=overload.highest, queue=queue),
    )


def _gate(shape: Shape, rng: random.Random) -> Gate:
    return Gate(
        limit=shape.limit,
        queue=shape.queue,
        rng=rng,
        gradient=shape.gradient,
        shadow=shape.shadow,
    )
