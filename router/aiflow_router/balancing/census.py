"""What exists now, counted for metrics and for `/readyz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.endpoint import Endpoint, State
from aiflow_router.catalog.snapshot import Snapshot
from aiflow_router.catalog.view import View


class Census:
    def __init__(self, *, catalog: View, loads: Loads) -> None:
        self._catalog = catalog
        self._loads = loads

    def state(self, endpoint: Endpoint) -> State:
        """The endpoint's own state, or UNREACHABLE where the router failed to connect lately."""
        state = self._catalog.snapshot.entries[endpoint.key].state
        if state is State.READY and self._loads.unreachable(endpoint):
            return State.UNREACHABLE
        return state

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
            if load.refusals and self.state(load.endpoint) is State.UNREACHABLE:
                found[load.endpoint.backend, State.READY] -= 1
                found[load.endpoint.backend, State.UNREACHABLE] += 1
        return {(name, state.name.lower()): count for (name, state), count in found.items()}

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
