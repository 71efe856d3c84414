"""What can only be said of all routes together; the one place where they are checked so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiflow_router.config import courses, shadows
from aiflow_router.config.route import Route

Path = tuple[str | int, ...]
"""Keys and positions from the top of the document, such as ("routes", 1, "match")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that makes the document unusable; the reader adds file, line and column.

    Attributes:
        path: what is wrong.
        why: what is wrong with it, and what to do; for a person.
    """

    path: Path
    why: str


def check(
    routes: Sequence[Route],
    *,
    servable: frozenset[str] | None = None,
    services: frozenset[str] | None = None,
) -> Iterator[Problem]:
    """Every problem between routes; each of them is valid by itself.

    `servable` are the models that there ever can be, and `services` the services; None where
    servers register themselves.
    """
    yield from _matched_twice(routes)
    yield from _never_served(routes, servable, services)
    for found in (courses, shadows):
        for path, why in found.problems(routes, servable=servable):
            yield Problem(path=path, why=why)


def askable(routes: Sequence[Route], servable: frozenset[str] | None) -> frozenset[str] | None:
    """The models that may be asked for: those that there ever can be, and names for others."""
    if servable is None:
        return None
    return servable | {route.match.model for route in routes if route.match.model is not None}


def _matched_twice(routes: Sequence[Route]) -> Iterator[Problem]:
    first: dict[tuple[str | None, str | None], int] = {}
    for index, route in enumerate(routes):
        match = (route.match.model, route.match.service)
        before = first.setdefault(match, index)
        if before != index:
            kind, name = ("model", match[0]) if match[0] else ("service", match[1])
            yield Problem(
                path=("routes", index, "match"),
                why=f'two routes match {kind} "{name}", this one and routes.{before}; only one '
                "could apply: remove one of them",
            )


def _never_served(
    routes: Sequence[Route], servable: frozenset[str] | None, services: frozenset[str] | None
) -> Iterator[Problem]:
    for index, route in enumerate(routes):
        model, service = route.match.model, route.match.service
        if service is not None:
            why = courses.not_servable(service, services, kind="service")
        elif model is None or _goes_elsewhere(route):
            continue
        else:
            why = courses.not_servable(model, servable)
        if why is not None:
            kind = "model" if service is None else "service"
            yield Problem(path=("routes", index, "match", kind), why=why)


def _goes_elsewhere(route: Route) -> bool:
    """Whether calls that ask for the route's model may be answered by others."""
    return any(
        course is not None and course.mode == "enforce" for course in (route.split, route.fallback)
    )
