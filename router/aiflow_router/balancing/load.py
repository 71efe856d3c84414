"""What the router knows of an endpoint from its own calls: how busy, and whether it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import structlog

from aiflow_router.catalog.endpoint import Endpoint, Key
from aiflow_router.catalog.snapshot import Change, Snapshot

_log = structlog.get_logger(__name__)

COOL_OFF_S = 1.0
MAX_COOL_OFF_S = 10.0
# A call that is let through to an ejected endpoint decides; one that has not by then is given up.
TRIAL_WITHIN_S = 10.0
LONG_AGO_S = float("-inf")


def _nobody(_load: Load) -> None:
    pass


@dataclass(slots=True, kw_only=True)
class Changes:
    """What the loads of one router share.

    Attributes:
        count: grows with whatever changes who may be picked; what only time changes is not in it.
        on_refused: told of each endpoint that refused or lost a connection.
        on_doubt: told of each endpoint that should be looked at now.
    """

    clock: Callable[[], float] = time.monotonic
    count: int = 0
    on_refused: Callable[[Load], None] = _nobody
    on_doubt: Callable[[Load], None] = _nobody


@dataclass(slots=True, kw_only=True, eq=False)
class Load:
    """Changes with every call, so it is the one mutable record here; it outlives snapshots.

    Three things can each keep an endpoint out: it cools off, it is unhealthy, it is ejected.

    Attributes:
        inflight: calls in flight now.
        refusals: connections refused in a row.
        cool_until_s: unreachable until then, unless a connection is made before.
        unhealthy: why an active check keeps it out; empty when none does.
        ejected: outcomes of its calls keep it out until `ejected_until_s`; then one call is let
            through, its trial.
        trial: that call is on its way.
        ejections: how often in a row; the next one lasts longer.
        faults_in_a_row: without an answer in between; never 0 while ejected.
        calls: that ended and count, faults included.
        swept_calls, swept_faults: what these were at the last sweep.
        ramps_from_s: when it joined or came back; `LONG_AGO_S` when it was always there.
        rooms: calls in flight that keep its batches full, by model; for `batch_aware`, where known.
    """

    endpoint: Endpoint
    changes: Changes = field(default_factory=Changes)
    inflight: int = 0
    refusals: int = 0
    cool_until_s: float = 0.0
    unhealthy: str = ""
    ejected: bool = False
    ejected_until_s: float = 0.0
    trial: bool = False
    ejections: int = 0
    faults_in_a_row: int = 0
    calls: int = 0
    faults: int = 0
    swept_calls: int = 0
    swept_faults: int = 0
    ramps_from_s: float = LONG_AGO_S
    rooms: dict[str, int] = field(default_factory=dict)

    def fit(self, now_s: float) -> bool:
        return not (self.ejected or self.unhealthy or self.cool_until_s > now_s)

    def refused(self, *, now_s: float) -> None:
        """Takes it out for 1 s, 2 s, 4 s ... 10 s; the next pick after that is the probe.

        Calls that fail together while it is out count as one.
        """
        if now_s < self.cool_until_s:
            return
        self._cools(now_s + min(COOL_OFF_S * 2**self.refusals, MAX_COOL_OFF_S))
        self.refusals = min(self.refusals + 1, 8)
        self.changes.count += 1
        self.changes.on_refused(self)

    def unreachable(self, *, until_s: float) -> None:
        """A check could not connect to it, and looks again before `until_s`."""
        if self.cool_until_s <= self.changes.clock():
            self.changes.count += 1
        self._cools(until_s)
        self.refusals = max(self.refusals, 1)

    def _cools(self, until_s: float) -> None:
        if not self.refusals:
            self._changed("out", "no connection to it")
        self.cool_until_s = until_s

    def connected(self) -> None:
        if self.refusals:
            self.refusals = 0
            self.cool_until_s = 0.0
            self._returned("it can be connected to")

    def fails(self, why: str) -> None:
        """An active check says that it cannot take calls."""
        if self.unhealthy != why:
            self.unhealthy = why
            self.changes.count += 1
            self._changed("out", why)

    def passes(self) -> None:
        if self.unhealthy:
            self.unhealthy = ""
            self._returned("its health check passes")

    def eject(self, *, why: str, now_s: float, for_s: float) -> None:
        self.ejected, self.trial = True, False
        self.ejected_until_s = now_s + for_s
        self.ejections += 1
        self.faults_in_a_row = 1
        self.changes.count += 1
        self._changed("ejected", f"{why}, for {for_s:g} s")

    def begin_trial(self, *, now_s: float) -> None:
        self.trial = True
        self.ejected_until_s = now_s + TRIAL_WITHIN_S
        self.changes.count += 1

    def end_trial(self, *, now_s: float) -> None:
        """It decided nothing: the next call is another one."""
        self.trial = False
        self.ejected_until_s = now_s
        self.changes.count += 1

    def readmit(self) -> None:
        self.ejected = self.trial = False
        self.faults_in_a_row = 0
        self._returned("a call went well")

    def registered_again(self) -> None:
        """So it lives: a server that returns is used at once, whatever is known of the old one."""
        if self.refusals or self.unhealthy or self.ejected:
            self.refusals = self.ejections = self.faults_in_a_row = 0
            self.cool_until_s, self.unhealthy = 0.0, ""
            self.ejected = self.trial = False
            self._returned("it registered again")
            self.changes.on_doubt(self)

    def _returned(self, why: str) -> None:
        self.ramps_from_s = self.changes.clock()
        self.changes.count += 1
        self._changed("back", why)

    def _changed(self, now: str, why: str) -> None:
        _log.info(
            "endpoint changed health",
            backend=self.endpoint.backend,
            address=self.endpoint.address,
            now=now,
            why=why,
        )


class Loads:
    """The loads of the endpoints in the catalog, by key.

    Args:
        slow_start_s: who joins later than this after the start counts as new; before, all are.
    """

    def __init__(self, *, clock: Callable[[], float], slow_start_s: float = 0.0) -> None:
        self._clock = clock
        self._all_new_until_s = clock() + slow_start_s
        self.changes = Changes(clock=clock)
        self._by_key: dict[Key, Load] = {}
        self._backends: dict[str, dict[Load, None]] = {}

    def __getitem__(self, endpoint: Endpoint) -> Load:
        return self._by_key[endpoint.key]

    def __iter__(self) -> Iterator[Load]:
        return iter(self._by_key.values())

    def __contains__(self, load: Load) -> bool:
        return self._by_key.get(load.endpoint.key) is load

    def at(self, key: Key) -> Load:
        return self._by_key[key]

    def follow(self, _snapshot: Snapshot, change: Change) -> None:
        for key in change.gone:
            load = self._by_key.pop(key, None)
            if load is not None:
                self._backends[key[0]].pop(load, None)
        for key, entry in change.put.items():
            load = self._by_key.get(key)
            if load is None:
                load = self._by_key[key] = self._new(entry.endpoint)
            elif load.endpoint is not entry.endpoint:
                load.endpoint = entry.endpoint
                load.registered_again()
            backend = self._backends.setdefault(key[0], {})
            if entry.ready():
                backend[load] = None
            else:
                backend.pop(load, None)

    def _new(self, endpoint: Endpoint) -> Load:
        now_s = self._clock()
        ramps_from_s = now_s if now_s > self._all_new_until_s else LONG_AGO_S
        return Load(endpoint=endpoint, changes=self.changes, ramps_from_s=ramps_from_s)

    def backend(self, name: str) -> Collection[Load]:
        """The loads of a backend that take new calls by the catalog."""
        return self._backends.get(name, {}).keys()
