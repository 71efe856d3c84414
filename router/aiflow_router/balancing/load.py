"""What the router knows of an endpoint from its own calls: how busy, and whether it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aiflow_router.catalog.endpoint import Endpoint, Key
from aiflow_router.catalog.snapshot import Change, Snapshot

COOL_OFF_S = 1.0
MAX_COOL_OFF_S = 10.0


@dataclass(slots=True, kw_only=True, eq=False)
class Load:
    """Changes with every call, so it is the one mutable record here; it outlives snapshots.

    Attributes:
        inflight: calls in flight now.
        refusals: connections refused in a row.
        cool_until_s: not picked before this time while another endpoint can be.
        rooms: calls in flight that keep its batches full, by model; for `batch_aware`, where known.
    """

    endpoint: Endpoint
    inflight: int = 0
    refusals: int = 0
    cool_until_s: float = 0.0
    rooms: dict[str, int] = field(default_factory=dict)

    def refused(self, *, now_s: float) -> None:
        """Takes it out for 1 s, 2 s, 4 s ... 10 s; the next pick after that is the probe.

        Calls that fail together while it is out count as one.
        """
        if now_s < self.cool_until_s:
            return
        self.cool_until_s = now_s + min(COOL_OFF_S * 2**self.refusals, MAX_COOL_OFF_S)
        self.refusals = min(self.refusals + 1, 8)

    def connected(self) -> None:
        self.refusals = 0
        self.cool_until_s = 0.0


class Loads:
    """The loads of the endpoints in the catalog, by key."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_key: dict[Key, Load] = {}

    def __getitem__(self, endpoint: Endpoint) -> Load:
        return self._by_key[endpoint.key]

    def __iter__(self) -> Iterator[Load]:
        return iter(self._by_key.values())

    def at(self, key: Key) -> Load:
        return self._by_key[key]

    def follow(self, _snapshot: Snapshot, change: Change) -> None:
        for key in change.gone:
            self._by_key.pop(key, None)
        for key, entry in change.put.items():
            load = self._by_key.get(key)
            if load is None:
                self._by_key[key] = Load(endpoint=entry.endpoint)
            elif load.endpoint is not entry.endpoint:
                # It registered again, so it lives: a server that returns is used at once.
                load.endpoint = entry.endpoint
                load.connected()

    def unreachable(self, endpoint: Endpoint) -> bool:
        return self[endpoint].cool_until_s > self._clock()
