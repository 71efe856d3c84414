"""Which endpoints of one model or service may be picked, worked out when that changes.

fit        neither cooling off, nor unhealthy, nor ejected: these are picked from.
on trial   its ejection is over: it gets one call, and what comes of that decides.
panic      none is fit: all are used, because trying is better than refusing.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiflow_router.balancing.load import Changes, Load
from aiflow_router.balancing.session import draw
from aiflow_router.balancing.slow_start import factor, next_step_s
from aiflow_router.balancing.zone import local_part

NEVER_S = float("inf")
AT_ONCE_S = float("-inf")

# Loads, and the upper bound of the draw in [0, 1) that chooses them; the last bound is 1.
Choice = tuple[float, Sequence[Load]]


class Asking(Protocol):
    """What a pool may know of the call."""

    @property
    def tried(self) -> Sequence[Load]: ...

    @property
    def session(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What makes some of the fit ones preferred.

    Attributes:
        zone: the router's own; empty for none.
        slow_start_s: over which a new endpoint comes to its share; 0 for at once.
    """

    zone: str = ""
    slow_start_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a pool would pick from.

    Attributes:
        fit: these; none is fit in a panic, when all are used.
        due: those whose ejection is over: each gets the next call, and with it its trial.
        slow_start_s, zone: what makes some of the fit ones preferred.
    """

    fit: frozenset[Load]
    due: frozenset[Load]
    slow_start_s: float
    zone: str


class Pool:
    """Made anew with the catalog's snapshot; what lasts is in the loads.

    Args:
        loads: those that take new calls.
        steady: a session's calls are chosen for alike; for strategies that keep sessions.
    """

    def __init__(
        self,
        loads: Sequence[Load],
        *,
        changes: Changes,
        preference: Preference | None = None,
        steady: bool = False,
    ) -> None:
        self._loads = loads
        self._changes = changes
        self._preference = preference or Preference()
        self._zones = 0  # Of the loads; counted with the first call, which many a pool never sees.
        self._steady = steady
        self._seen = -1
        self._open = loads
        self._until_s = AT_ONCE_S  # Until then, and while nothing changes, `_open` is the answer.
        self._next_s = AT_ONCE_S  # When something expires.
        self._fit: Sequence[Load] = loads
        self._due: list[Load] = []
        self._bounds: list[float] = []
        self._choices: list[Sequence[Load]] = []

    def open(self, now_s: float, rng: random.Random, asking: Asking) -> Sequence[Load]:
        """The loads to pick from; none only where all were tried."""
        if now_s < self._until_s and self._seen == self._changes.count and not asking.tried:
            return self._open
        return self._chosen(now_s, rng, asking)

    def another(self, now_s: float, tried: Sequence[Load | None]) -> bool:
        """Whether one that is fit, or where none is any, was not tried."""
        if now_s >= self._next_s or self._seen != self._changes.count:
            self._refresh(now_s)
        return any(load not in tried for load in self._fit or self._loads)

    def outlook(self, now_s: float) -> Outlook:
        """Who may be picked now; picks nobody."""
        if now_s >= self._next_s or self._seen != self._changes.count:
            self._refresh(now_s)
        return Outlook(
            fit=frozenset(self._fit),
            due=frozenset(self._due),
            slow_start_s=self._preference.slow_start_s,
            zone=self._preference.zone,
        )

    def panics(self, now_s: float) -> bool:
        """Whether none is fit, so that all are used."""
        return not any(load.fit(now_s) for load in self._loads)

    def _chosen(self, now_s: float, rng: random.Random, asking: Asking) -> Sequence[Load]:
        if now_s >= self._next_s or self._seen != self._changes.count:
            self._refresh(now_s)
        tried = asking.tried
        if self._due and not tried:
            load = self._due.pop()
            load.begin_trial(now_s=now_s)
            return (load,)
        chosen = self._open
        if len(self._choices) > 1:
            name = asking.session if self._steady else ""
            drawn = draw(name) if name else rng.random()
            chosen = self._choices[bisect_right(self._bounds, drawn)]
        if not tried:
            return chosen
        for some in (chosen, self._fit, self._loads):
            if untried := [load for load in some if load not in tried]:
                return untried
        return ()

    def _refresh(self, now_s: float) -> None:
        self._seen = self._changes.count
        fit: list[Load] = []
        due: list[Load] = []
        next_s = NEVER_S
        for load in self._loads:
            if load.cool_until_s > now_s:
                next_s = min(next_s, load.cool_until_s)
            elif load.unhealthy:
                pass
            elif not load.ejected:
                fit.append(load)
            elif load.ejected_until_s > now_s:
                next_s = min(next_s, load.ejected_until_s)
            else:
                due.append(load)
        self._fit = tuple(fit) if len(fit) < len(self._loads) else self._loads
        if self._preference.zone and not self._zones:
            self._zones = len({load.endpoint.zone for load in self._loads})
        found, ramp_s = choices(
            self._fit or self._loads,
            preference=self._preference,
            zones=self._zones,
            now_s=now_s,
        )
        self._bounds = [bound for bound, _ in found[:-1]]
        self._choices = [some for _, some in found]
        self._open = self._choices[0]
        self._due = due
        self._next_s = min(next_s, ramp_s)
        self._until_s = AT_ONCE_S if due or len(found) > 1 else self._next_s


def choices(
    fit: Sequence[Load], *, preference: Preference, zones: int, now_s: float
) -> tuple[list[Choice], float]:
    """What a draw between 0 and 1 chooses, and when that is to be worked out again.

    A strategy then picks from the chosen ones, so new endpoints and other zones get their part
    whichever strategy it is, and the weights mean among the chosen ones what they always mean.
    `zones` is how many the endpoints are in, fit or not.
    """
    window_s = preference.slow_start_s
    since_s = now_s - window_s
    factors: dict[Load, float] = {}
    next_s = NEVER_S
    for load in [load for load in fit if load.ramps_from_s > since_s]:
        age_s = now_s - load.ramps_from_s
        factors[load] = factor(age_s, window_s)
        next_s = min(next_s, load.ramps_from_s + next_step_s(age_s, window_s))
    zone = preference.zone
    part = local_part(fit, zone=zone, zones=zones) if zone else 0.0
    if part == 0.0:
        return _ramped(fit, factors, 0.0, 1.0), next_s
    here = [load for load in fit if load.endpoint.zone == zone]
    found = _ramped(here, factors, 0.0, part)
    if part < 1.0:
        elsewhere = [load for load in fit if load.endpoint.zone != zone]
        found += _ramped(elsewhere, factors, part, 1.0)
    return found, next_s


def _ramped(
    loads: Sequence[Load], factors: dict[Load, float], start: float, end: float
) -> list[Choice]:
    """Splits draws from `start` to `end` so that each load is among the chosen for its factor.

    Where all are new they are compared with the one that is furthest.
    """
    if not factors:
        return [(end, loads)]
    most = max(factors.get(load, 1.0) for load in loads)
    bounds = sorted({factors.get(load, 1.0) for load in loads})
    return [
        (
            start + (end - start) * bound / most,
            [load for load in loads if factors.get(load, 1.0) >= bound],
        )
        for bound in bounds
    ]
