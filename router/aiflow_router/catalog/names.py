"""Who takes calls for each name of one kind, kept up to date one endpoint and name at a time."""

from __future__ import annotations

from immutables import Map

from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.snapshot import Moves


class Names:
    """The models or the services of the entries.

    Attributes:
        served: as it was at the last `publish`.
    """

    def __init__(self) -> None:
        self.served: Map[str, tuple[Key, ...]] = Map()
        self._ready: dict[str, dict[Key, None]] = {}
        # Endpoints that serve a name, ready or not: while there is one the name is known.
        self._holders: dict[str, int] = {}
        self._moves: dict[str, dict[Key, bool]] = {}

    def hold(self, name: str) -> None:
        """One endpoint more serves `name`."""
        self._holders[name] = self._holders.get(name, 0) + 1
        self._moves.setdefault(name, {})

    def release(self, name: str) -> None:
        """One endpoint less serves `name`."""
        left = self._holders[name] - 1
        if left:
            self._holders[name] = left
        else:
            del self._holders[name]
        self._moves.setdefault(name, {})

    def join(self, name: str, key: Key) -> None:
        """The endpoint takes calls for `name`, which it holds."""
        self._ready.setdefault(name, {})[key] = None
        self._moves.setdefault(name, {})[key] = True

    def leave(self, name: str, key: Key) -> None:
        ready = self._ready[name]
        del ready[key]
        if not ready:
            del self._ready[name]
        self._moves.setdefault(name, {})[key] = False

    def publish(self) -> dict[str, Moves]:
        """Brings `served` up to date; the moves since the last time.

        Costs a step for each name that moved.
        """
        moves, self._moves = self._moves, {}
        for name in moves:
            if name in self._holders:
                self.served = self.served.set(name, tuple(self._ready.get(name, ())))
            elif name in self.served:
                self.served = self.served.delete(name)
        return dict(moves)
