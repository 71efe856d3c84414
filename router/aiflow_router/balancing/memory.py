"""What a model or service remembers of its endpoints from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiflow_router.balancing.load import Load


@dataclass(slots=True, kw_only=True)
class Memory:
    """Changes with calls and outlives snapshots, or every change would start all turns anew.

    Attributes:
        turns: what each endpoint is owed, in weights; for `round_robin`.
    """

    turns: dict[Load, float] = field(default_factory=dict)

    def follow(self, loads: Sequence[Load]) -> None:
        """Forgets who has left. Who joins is owed what the others are on average.

        An endpoint that leaves takes what it owes along, so the rest do not add up to nothing any
        more: one that joined at 0 might wait for long, or get a burst.
        """
        known = [self.turns[load] for load in loads if load in self.turns]
        average = sum(known) / len(known) if known else 0.0
        self.turns = {load: self.turns.get(load, average) for load in loads}


class Asked(Protocol):
    """What a strategy may know of the call beside its endpoints."""

    @property
    def memory(self) -> Memory: ...
