"""What can only be said of the shadows of all routes together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiflow_router.config.courses import circles, not_servable
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
    for circle in circles({name: (to,) for name, to in targets.items()}):
        why = (
            f"shadows go in a circle, {' -> '.join((*circle, circle[0]))}: copies are not copied "
            "again, so each call would only be made twice; remove one of them"
        )
        yield ("routes", places[circle[0]], "shadow", "to"), why
    for name, to in targets.items():
        if (why_not := not_servable(to, servable)) is not None:
            yield ("routes", places[name], "shadow", "to"), why_not
