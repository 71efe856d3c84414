"""Whether the models that routes send calls to can serve them, over all routes at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from aiflow_router.config.route import Route

Path = tuple[str | int, ...]

# What of a route holds for calls to a model that is called itself, not for those it is split into.
_OF_THE_CALLED = ("balance", "latency_aim", "hedge", "overload", "cache", "shadow")


def problems(
    routes: Sequence[Route], *, servable: frozenset[str] | None
) -> Iterator[tuple[Path, str]]:
    """What no call could go to, and what would send calls round; where it is written, and why.

    `servable` are the models that there ever can be; None where servers register themselves.
    """
    by_model = {route.match.model: route for route in routes if route.match.model is not None}
    for index, route in enumerate(routes):
        for place, name in _named(route):
            why = not_servable(name, servable)
            other = by_model.get(name)
            if why is None and other is not None and other is not route and _only_split(other):
                why = (
                    f'"{name}" is split into others by a route of its own, which is not followed '
                    f"from here: name one of {', '.join(_weights(other))}"
                )
            if why is not None:
                yield ("routes", index, *place), why
        if _only_split(route):
            for key in _OF_THE_CALLED:
                if getattr(route, key) != Route.model_fields[key].default:
                    sides = ", ".join(_weights(route))
                    why = f"has no effect: calls go to {sides}, each by its own route; say it there"
                    yield ("routes", index, key), why
    index_of = {route.match.model: index for index, route in enumerate(routes)}
    for circle in circles({name: _fallbacks(route) for name, route in by_model.items()}):
        way = " -> ".join((*circle, circle[0]))
        why = f"fallbacks go round, {way}: while all fail, each sends its calls on; leave one out"
        yield ("routes", index_of[circle[-1]], "fallback"), why


def circles(to: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """The ways round that a walk in the order of `to` comes upon, each once."""
    done: set[str] = set()
    for start in to:
        trail = [start]
        rests = [iter(to[start])] if start not in done else []
        while rests:
            other = next(rests[-1], None)
            if other is None:
                rests.pop()
                done.add(trail.pop())
            elif other in trail[:-1]:
                yield tuple(trail[trail.index(other) :])
            elif other != trail[-1] and other not in done:
                trail.append(other)
                rests.append(iter(to.get(other, ())))


def not_servable(name: str, servable: frozenset[str] | None, *, kind: str = "model") -> str | None:
    """Why no call can ever go to that model or service; None where one may."""
    if servable is None or name in servable:
        return None
    nearest = difflib.get_close_matches(name, servable, n=1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"add it to the {kind}s of one"
    return f'no static endpoint serves "{name}" and none can register; {hint}'


def _named(route: Route) -> Iterator[tuple[Path, str]]:
    """The models to which the route sends calls, and where it says so."""
    for name in _weights(route):
        yield ("split", "weights", name), name
    for at, name in enumerate(_fallbacks(route)):
        yield ("fallback", "to", at), name


def _fallbacks(route: Route) -> Sequence[str]:
    return () if route.fallback is None else route.fallback.to


def _weights(route: Route) -> Mapping[str, int]:
    return {} if route.split is None else route.split.weights


def _only_split(route: Route) -> bool:
    """Whether calls to the route's model never go to a model of that name."""
    split = route.split
    return split is not None and split.mode == "enforce" and route.match.model not in split.weights
