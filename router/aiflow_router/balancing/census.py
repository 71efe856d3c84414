"""What exists now, counted for metrics and for `/readyz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.endpoint import Endpoint, State
from aiflow_router.catalog.snapshot import Snapshot
from aiflow_router.catalog.view import View


class Census:
    """Args: panics: the models and services, by backend, for which no endpoint is fit."""

    def __init__(
        self,
        *,
        catalog: View,
        loads: Loads,
        panics: Callable[[], Mapping[str, int]],
    ) -> None:
        self._catalog = catalog
        self._loads = loads
        self._panics = panics

    def state(self, endpoint: Endpoint) -> State:
        """The endpoint's own state, or where that is READY what keeps it out of picking."""
        state = self._catalog.snapshot.entries[endpoint.key].state
        if state is not State.READY:
            return state
        load = self._loads[endpoint]
        if load.cool_until_s > self._loads.changes.clock():
            return State.UNREACHABLE
        if load.unhealthy:
            return State.UNHEALTHY
        return State.EJECTED if load.ejected else state

    def inflight(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for load in self._loads:  # Of 10,000 endpoints, so every step counts.
            backend = load.endpoint.backend
            found[backend] = found.get(backend, 0) + load.inflight
        return found

    def endpoints(self) -> Mapping[tuple[str, str], int]:
        found = Counter(
            (key[0], entry.state) for key, entry in self._catalog.snapshot.entries.items()
        )
        for load in self._loads:
            if load.refusals or load.unhealthy or load.ejected:
                state = self.state(load.endpoint)
                if state not in (State.READY, State.DRAINING):
                    found[load.endpoint.backend, State.READY] -= 1
                    found[load.endpoint.backend, state] += 1
        return {(name, state.name.lower()): count for (name, state), count in found.items()}

    def panics(self) -> Mapping[str, int]:
        """Models and services of each backend for which endpoints are used that are not fit."""
        return self._panics()

    def age_s(self) -> float:
        return self._catalog.age_s()

    def served(self) -> dict[str, object]:
        return served(self._catalog.snapshot)


def served(snapshot: Snapshot) -> dict[str, object]:
    """Models and services that can be called, and the number of endpoints."""
    return {
        "models": sorted(name for name, ready in snapshot.models.items() if ready),
        "services": sorted(name for name, ready in snapshot.services.items() if ready),
        "endpoints": len(snapshot.entries),
    }
