"""Zone preference: calls stay in the router's own zone while it has its fair share of endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from aiflow_router.balancing.load import Load


def local_part(fit: Sequence[Load], *, zone: str, zones: int) -> float:
    """The part of the calls that stays in `zone`.

    The fair share of a zone is 1 / zones, those without a fit endpoint too: routers are taken to
    be spread evenly over them. A zone whose part of the weight of those that are `fit` is at least
    that keeps all its calls. One that has less keeps part / fair share of them, and the rest goes
    to the others: so each endpoint gets the same for its weight, as in Envoy's zone-aware routing.
    """
    total = sum([load.endpoint.weight for load in fit])
    local = sum([load.endpoint.weight for load in fit if load.endpoint.zone == zone])
    return min(1.0, local * zones / total) if total else 0.0
