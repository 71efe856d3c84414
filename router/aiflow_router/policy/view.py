"""A policy as a person looks at it: a line for each route and limit, and what differs in two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sign = Literal["+", "-", "~"]

COLUMNS = ("route", "timeout", "attempts", "hedge", "balance", "limit", "candidates")

LIMIT_COLUMNS = ("limit", "of", "per", "allows", "burst", "mode", "over it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a difference; `depth` 0 names a route or a limit, 1 a setting of it."""

    sign: Sign
    depth: int
    text: str


def rows(document: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """A row of COLUMNS for each route of an effective document."""
    return [_row(route) for route in document.get("routes", ())]


def limit_rows(document: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """A row of LIMIT_COLUMNS for each limit of an effective document."""
    return [_limit_row(limit) for limit in document.get("limits", ())]


def _limit_row(limit: Mapping[str, Any]) -> tuple[str, ...]:
    match = limit.get("match") or {}
    kind = next((kind for kind in ("rate", "quota") if limit.get(kind)), "concurrency")
    unit = limit.get("cost", "calls")
    allows = f"{limit[kind]} at a time" if kind == "concurrency" else f"{limit[kind]} {unit}"
    if limit.get("strict"):
        allows += ", strict"
    burst = str(limit.get("burst", "one period")) if kind == "rate" else "-"
    return (
        str(limit["name"]),
        _name(limit) if match else "all calls",
        ", ".join(limit.get("per", ())) or "platform",
        allows,
        "-" if limit.get("strict") else burst,
        str(limit.get("mode", "")),
        "waits" if limit.get("wait") else "refused",
    )


def _row(route: Mapping[str, Any]) -> tuple[str, ...]:
    overload = route.get("overload", {})
    off = overload.get("mode") == "off"
    return (
        _name(route),
        str(route.get("timeout", "")),
        str(route.get("retry", {}).get("attempts", "")),
        str(route.get("hedge", {}).get("after", "-")),
        str(route.get("balance", "")),
        "-" if off else str(overload.get("limit", "")),
        candidates(route),
    )


def candidates(route: Mapping[str, Any]) -> str:
    """Who may answer, in order: "90 detector, 10 detector-v2 -> detector-lite"."""
    match = route["match"]
    split, fallback = route.get("split") or {}, route.get("fallback") or {}
    weights = split.get("weights", {}) if split.get("mode") != "off" else {}
    first = ", ".join(f"{weight} {name}" for name, weight in weights.items())
    then = fallback.get("to", ()) if fallback.get("mode") != "off" else ()
    return " -> ".join((first or str(match.get("model") or match.get("service")), *then))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Line]:
    """From one effective document to another, by route and limit; nothing where they are the same.

    The order of limits is of no effect, nor is that of routes.
    """
    before, after = _named(old), _named(new)
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            yield Line(sign="-", depth=0, text=name)
        elif name not in before:
            yield Line(sign="+", depth=0, text=name)
            yield from _settings("+", after[name])
        elif before[name] != after[name]:
            yield Line(sign="~", depth=0, text=name)
            yield from _changed(_flat(before[name]), _flat(after[name]))


def _named(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    routes = {_name(route): route for route in document.get("routes", ())}
    limits = {f"limit {limit['name']}": limit for limit in document.get("limits", ())}
    return {**routes, **limits}


def _settings(sign: Sign, route: Mapping[str, Any]) -> Iterator[Line]:
    for key, value in _flat(route).items():
        if key != "name" and (not key.startswith("match.") or "name" in route):
            yield Line(sign=sign, depth=1, text=f"{key}: {value}")


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    for key in dict.fromkeys((*before, *after)):
        if key not in after:
            yield Line(sign="-", depth=1, text=f"{key}: {before[key]}")
        elif key not in before:
            yield Line(sign="+", depth=1, text=f"{key}: {after[key]}")
        elif before[key] != after[key]:
            yield Line(sign="~", depth=1, text=f"{key}: {before[key]} -> {after[key]}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"retry": {"attempts": 2}} as {"retry.attempts": 2}."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found.update(_flat(inner, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = inner
    return found


def _name(route: Mapping[str, Any]) -> str:
    match = route["match"]
    return f"model {match['model']}" if match.get("model") else f"service {match['service']}"
