"""What can only be said of the shadows of all routes together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from aiflow_router.config.route import Route

Path = tuple[str | int, ...]


def problems(
    routes: Sequence[Route], *, servable: frozenset[str] | None
) -> Iterator[tuple[Path, str]]:
    """What is wrong, and why; `servable` as in routes.check."""
    places = {route.match.model: index for index, route in enumerate(routes)}
    targets = {
        route.match.model: route.shadow.to
        for route in routes
        if route.match.model is not None and route.shadow is not None
    }
    for circle in _circles(targets):
        why = (
            f"shadows go in a circle, {' -> '.join((*circle, circle[0]))}: copies are not copied "
            "again, so each call would only be made twice; remove one of them"
        )
        yield ("routes", places[circle[0]], "shadow", "to"), why
    for name, to in targets.items():
        if servable is not None and to not in servable:
            nearest = difflib.get_close_matches(to, servable, n=1)
            hint = f'did you mean "{nearest[0]}"? ' if nearest else ""
            why = (
                f'no static endpoint serves "{to}" and none can register, so nothing would be '
                f"copied: {hint}list an endpoint for it under discovery.static"
            )
            yield ("routes", places[name], "shadow", "to"), why


def _circles(targets: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Each once, from the first of its models on; `targets` by model."""
    seen: set[str] = set()
    for start in targets:
        way = [start]
        while (to := targets.get(way[-1])) is not None and to not in way and to not in seen:
            way.append(to)
        if to in way:
            yield tuple(way[way.index(to) :])
        seen.update(way)
