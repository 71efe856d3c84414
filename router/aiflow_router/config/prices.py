"""Whether prices can be asked for at the router that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiflow_router.config.limits import Ground
from aiflow_router.config.route import Route
from aiflow_router.config.routes import Problem


def check(routes: Sequence[Route], *, ground: Ground) -> Iterator[Problem]:
    """Every price that nobody would pay."""
    for index, route in enumerate(routes):
        if route.price is not None and not ground.storage:
            yield Problem(
                path=("routes", index, "price"),
                why="is paid in credits, and there is no database that has them: set "
                "`storage: {url: sqlite:///aiflow.db}`, or leave the price out",
            )
