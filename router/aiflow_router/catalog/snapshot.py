"""The catalog at one moment, and what is different from the moment before.

Snapshots are immutable and swapped whole, so that a reader takes no lock. The change comes beside
each, so that who follows does no more work than there was change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from immutables import Map

from aiflow_router.catalog.endpoint import Endpoint, Key, State

Served = Mapping[str, tuple[Key, ...]]
# Of one name, by key: whether the endpoint takes its calls now, for those where that may be new.
Moves = Mapping[Key, bool]

_NOTHING: Map[Any, Any] = Map()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    endpoint: Endpoint
    state: State

    def ready(self) -> bool:
        """Whether it takes new calls."""
        return self.state is State.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Who serves what, in no particular order.

    While a large change is spread over several snapshots, an endpoint may be missing under names
    that it serves; never is one listed that is not an entry, not ready or does not serve the name.

    Attributes:
        version: grows by one with every snapshot.
        entries: every endpoint.
        models: the endpoints that take new calls, by model name; a name whose endpoints all drain
            is there with none.
        services: the same by full service name.
    """

    version: int = 0
    entries: Mapping[Key, Entry] = field(default_factory=lambda: _NOTHING)
    models: Served = field(default_factory=lambda: _NOTHING)
    services: Served = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a snapshot has that the one before had not, net.

    Attributes:
        put: entries that are new or replaced.
        gone: the keys of entries that are not there any more.
        models: the moves under each name whose place in `Snapshot.models` may be new; a name that
            is not in there now has left.
        services: the same for services.
    """

    put: Mapping[Key, Entry] = field(default_factory=lambda: _NOTHING)
    gone: frozenset[Key] = frozenset()
    models: Mapping[str, Moves] = field(default_factory=lambda: _NOTHING)
    services: Mapping[str, Moves] = field(default_factory=lambda: _NOTHING)


def build(entries: Iterable[Entry], *, version: int) -> Snapshot:
    """The snapshot of these entries, from scratch: what a sum of changes has to come to."""
    listed = {entry.endpoint.key: entry for entry in entries}
    models: dict[str, list[Key]] = {}
    services: dict[str, list[Key]] = {}
    for key, entry in listed.items():
        for table, names in ((models, entry.endpoint.models), (services, entry.endpoint.services)):
            for name in names:
                keys = table.setdefault(name, [])
                if entry.ready():
                    keys.append(key)
    return Snapshot(
        version=version,
        entries=Map(listed),
        models=Map({name: tuple(keys) for name, keys in models.items()}),
        services=Map({name: tuple(keys) for name, keys in services.items()}),
    )


def whole(snapshot: Snapshot) -> Change:
    """The change from nothing to `snapshot`, for who begins to follow."""
    return Change(
        put=snapshot.entries,
        models={name: dict.fromkeys(keys, True) for name, keys in snapshot.models.items()},
        services={name: dict.fromkeys(keys, True) for name, keys in snapshot.services.items()},
    )
