"""The catalog at one moment: immutable and swapped whole, so that a reader takes no lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from aiflow_router.catalog.endpoint import Endpoint, Key, Protocol, State

Served = Mapping[str, tuple[Endpoint, ...]]


def _none() -> Served:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    endpoint: Endpoint
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Who serves what.

    Attributes:
        version: grows by one with every change.
        entries: every endpoint, sorted by backend and address.
        models: the endpoints that take new calls, by model name; a name whose endpoints all drain
            is there with none.
        services: the same by full service name.
        oip: the endpoints that speak the Open Inference Protocol and take new calls.
    """

    version: int = 0
    entries: Mapping[Key, Entry] = field(default_factory=lambda: MappingProxyType({}))
    models: Served = field(default_factory=_none)
    services: Served = field(default_factory=_none)
    oip: tuple[Endpoint, ...] = ()


def build(entries: Iterable[Entry], *, version: int) -> Snapshot:
    ordered = sorted(entries, key=lambda entry: entry.endpoint.key)
    models: dict[str, list[Endpoint]] = {}
    services: dict[str, list[Endpoint]] = {}
    for entry in ordered:
        for table, names in ((models, entry.endpoint.models), (services, entry.endpoint.services)):
            for name in names:
                ready = table.setdefault(name, [])
                if entry.state is State.READY:
                    ready.append(entry.endpoint)
    return Snapshot(
        version=version,
        entries=MappingProxyType({entry.endpoint.key: entry for entry in ordered}),
        models=MappingProxyType({name: tuple(ready) for name, ready in models.items()}),
        services=MappingProxyType({name: tuple(ready) for name, ready in services.items()}),
        oip=tuple(
            entry.endpoint
            for entry in ordered
            if entry.endpoint.protocol is Protocol.OIP and entry.state is State.READY
        ),
    )
