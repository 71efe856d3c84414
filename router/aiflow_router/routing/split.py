"""Split: which of several models a call to one of them is for, by their weights.

Callers are kept by weighted rendezvous hashing (see `balancing.session`): a side whose weight grows
only wins callers, one whose weight falls only loses some, and of two sides the other keeps all that
it does not lose. So 10 -> 50 keeps the first tenth where it is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiflow_router.routing.guard import LOOK_EVERY, Guard, Stop, Tally, worse

By = Literal["request", "tenant", "session"]
OnStop = Callable[[str, str, Stop], None]  # The route's model, the side, why.

# A hash takes 1 us a side, so callers' sides are remembered: of so many, and not of those whose
# names somebody made huge.
MAX_CALLERS = 16_384
MAX_NAME = 256
_HASH_BYTES = 6
_HASHES = 2 ** (8 * _HASH_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A route's.

    Attributes:
        weights: by model, 0 or more, more than 0 together.
        old: the side with which the guard compares the others, and to which all calls go where
            they were stopped.
        by: whose calls stay together.
        guard: None where nobody looks.
        shadow: only counted.
    """

    weights: Mapping[str, int]
    old: str
    by: By = "request"
    guard: Guard | None = None
    shadow: bool = False


def nobody_told(_model: str, _side: str, _stop: Stop) -> None:
    """For tables whose splits have no guard."""


@dataclass(slots=True, kw_only=True)
class Sides:
    """A split at work: the shares now, which the guard may have changed, and how calls ended.

    Lives in one event loop, as all of the router.

    Attributes:
        model: the route's.
        stopped: by side, why it gets no calls any more.
    """

    model: str
    split: Split
    rng: random.Random
    on_stop: OnStop
    stopped: dict[str, Stop] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(init=False)
    _names: list[str] = field(init=False, default_factory=list)
    _bounds: list[float] = field(init=False, default_factory=list)
    _callers: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tallies = {name: Tally() for name in self.split.weights}
        self._share_out()

    def shares(self) -> Mapping[str, float]:
        """What part of new calls each side gets; 0 for one that was stopped."""
        weights = self._weights()
        total = sum(weights.values())
        return {name: weights.get(name, 0) / total for name in self.split.weights}

    def home(self) -> str:
        """The side for what cannot be split: the greatest that is not stopped."""
        weights, old = self._weights(), self.split.old
        return max(weights, key=lambda side: (weights[side], side == old, side))

    def choose(self, caller: str) -> str:
        """The side of a call; `caller` is empty where nothing keeps its calls together."""
        if not caller:
            return self._names[bisect_right(self._bounds, self.rng.random())]
        side = self._callers.get(caller)
        if side is None:
            side = side_of(caller, self.model, self._weights())
            if len(caller) <= MAX_NAME:
                if len(self._callers) >= MAX_CALLERS:
                    self._callers.clear()
                self._callers[caller] = side
        return side

    def ended(self, side: str, *, well: bool, took_s: float | None = None) -> None:
        """Tells how a call of `side` ended; stops the side where that is one too many."""
        guard = self.split.guard
        if guard is None or side in self.stopped:
            return
        tally = self.tallies[side]
        tally.ended(well=well, took_s=took_s)
        old = self.split.old
        if side == old or (well and int(tally.calls) % LOOK_EVERY):
            return
        stop = worse(tally, self.tallies[old], guard)
        if stop is not None:
            self.stopped[side] = stop
            if not guard.shadow:
                self._share_out()
            self.on_stop(self.model, side, stop)

    def _weights(self) -> dict[str, int]:
        """Of the sides that get calls. The old side is never stopped, so there always is one."""
        left = {
            name: weight
            for name, weight in self.split.weights.items()
            if weight and (name not in self.stopped or self._only_watched())
        }
        return left or {self.split.old: 1}

    def _only_watched(self) -> bool:
        return self.split.guard is not None and self.split.guard.shadow

    def _share_out(self) -> None:
        weights = self._weights()
        total = sum(weights.values())
        self._names = list(weights)
        sums = itertools.accumulate(weights.values())
        self._bounds = [part / total for part in sums][:-1]
        self._callers.clear()


def side_of(caller: str, model: str, weights: Mapping[str, int]) -> str:
    """The side at which `caller` is at home, by the weights above 0; the same in every process."""

    def score(side: str) -> float:
        digest = hashlib.blake2b(f"{model}\0{side}\0{caller}".encode(), digest_size=_HASH_BYTES)
        return -weights[side] / math.log((int.from_bytes(digest.digest()) + 0.5) / _HASHES)

    return max((side for side, weight in weights.items() if weight), key=score)
