"""What a model or service remembers of its endpoints from call to call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiflow_router.balancing.answer_time import AnswerTime, observed
from aiflow_router.balancing.filling import Filling
from aiflow_router.balancing.load import Load


@dataclass(slots=True, kw_only=True)
class Memory:
    """Changes with calls and outlives snapshots, or every change would start all turns anew.

    Attributes:
        turns: what each endpoint is owed, in weights; for `round_robin`.
        timed: whether answers are to be timed; the next two are for `peak_ewma`.
        times: how long each takes to answer, where it was measured.
        chances: when each that was never measured was last picked.
        filling: which endpoint's batch is being filled; for `batch_aware`.
        homes: where sessions are at home; for `session`, as are the next two.
        homes_of: the endpoints that was found out of.
        seeds: what each endpoint adds to a hash.
    """

    turns: dict[Load, float] = field(default_factory=dict)
    timed: bool = False
    times: dict[Load, AnswerTime] = field(default_factory=dict)
    chances: dict[Load, float] = field(default_factory=dict)
    filling: Filling | None = None
    homes: dict[str, Load] = field(default_factory=dict)
    homes_of: Sequence[Load] = ()
    seeds: dict[Load, bytes] = field(default_factory=dict)

    def follow(self, *, joined: Iterable[Load], left: Iterable[Load]) -> None:
        """Forgets who has left. Who joins is owed what the others are on average.

        An endpoint that leaves takes what it owes along, so the rest do not add up to nothing any
        more: one that joined at 0 might wait for long, or get a burst.
        """
        for load in left:
            self.turns.pop(load, None)
            self.times.pop(load, None)
            self.chances.pop(load, None)
            if self.filling is not None:
                self.filling.fills.pop(load, None)
            self.seeds.pop(load, None)
        new = [load for load in joined if load not in self.turns]
        if new:
            average = sum(self.turns.values()) / len(self.turns) if self.turns else 0.0
            self.turns.update(dict.fromkeys(new, average))

    def answered(self, load: Load, *, outcome: str, took_s: float, now_s: float) -> None:
        if self.filling is not None:
            self.filling.answered(load, outcome=outcome, took_s=took_s, now_s=now_s)
            return
        known = observed(self.times.get(load), outcome=outcome, took_s=took_s, now_s=now_s)
        if known is not None:
            self.times[load] = known

    def expected_s(self, load: Load, now_s: float) -> float | None:
        """When its next answer is expected, where the strategy keeps count; None where unknown."""
        if self.filling is not None:
            return self.filling.expected_s(load, now_s)
        known = self.times.get(load)
        return None if known is None else known.now(now_s)


class Asked(Protocol):
    """What a strategy may know of the call beside its endpoints."""

    @property
    def memory(self) -> Memory: ...

    @property
    def session(self) -> str:
        """The caller's session; empty where it named none."""
