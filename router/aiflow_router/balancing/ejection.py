"""Ejection: an endpoint whose calls go wrong is left out for a while, then tried with one call.

                    faults in a row, or an outlier of the sweep
    admitted  ---------------------------------------------------->  ejected, 30 s x n up to 300 s
        ^                                                              |           ^
        |  its call goes well                                          | time over |  it fails
        +------------------------------------------------------------ trial -------+

The rules and start values are Envoy's outlier detection and gRFC A50, but for the floor.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.outcome import FAULTS, UNCOUNTED

_log = structlog.get_logger(__name__)

Mode = Literal["enforce", "shadow", "off"]
Reason = Literal["consecutive_faults", "failure_percentage", "success_rate", "failed_trial"]
# Among endpoints that hardly ever fail 1.9 sigma is next to nothing, so this much must fail too.
LEAST_FAILURE_PERCENT = 5.0
SWEPT_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EjectionPolicy:
    """When an endpoint is ejected, and for how long.

    Attributes:
        mode: `shadow` counts and logs what would be ejected.
        consecutive_faults: so many faults without an answer in between.
        interval_s: between sweeps; the next rules look at the calls of one interval.
        failure_percentage: this share of at least `failure_percentage_requests` calls.
        success_rate_sigmas: so many standard deviations below the mean of the backend's endpoints
            with at least `success_rate_requests` calls, if there are `success_rate_hosts` of them.
        base_s: times the number of ejections in a row, at most `max_s`.
        max_percent: of a backend's endpoints that may be out; one always may, one always stays.
    """

    mode: Mode = "enforce"
    consecutive_faults: int = 5
    interval_s: float = 10.0
    failure_percentage: float = 85.0
    failure_percentage_requests: int = 50
    success_rate_sigmas: float = 1.9
    success_rate_hosts: int = 5
    success_rate_requests: int = 100
    base_s: float = 30.0
    max_s: float = 300.0
    max_percent: float = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one interval showed of an endpoint; never without calls."""

    calls: int
    faults: int

    @property
    def success_percent(self) -> float:
        return 100.0 * (self.calls - self.faults) / self.calls


def allowed_out(endpoints: int, max_percent: float) -> int:
    """How many of a backend's endpoints may be out."""
    return min(max(1, int(endpoints * max_percent / 100)), endpoints - 1)


def too_many_failures(seen: Seen, policy: EjectionPolicy) -> bool:
    return (
        seen.calls >= policy.failure_percentage_requests
        and 100.0 - seen.success_percent >= policy.failure_percentage
    )


def least_success_percent(seen: Iterable[Seen], policy: EjectionPolicy) -> float:
    """Whoever succeeds less than this is an outlier; 0 where there are too few to compare."""
    rates = [one.success_percent for one in seen if one.calls >= policy.success_rate_requests]
    if len(rates) < max(2, policy.success_rate_hosts):
        return 0.0
    mean = sum(rates) / len(rates)
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
    least = mean - policy.success_rate_sigmas * deviation
    return min(least, 100.0 - LEAST_FAILURE_PERCENT)


class Outliers:
    """Ejects and readmits. Lives in one event loop.

    Args:
        count: told the backend and the reason of each ejection, made or (shadow) not.
    """

    def __init__(
        self,
        policy: EjectionPolicy,
        *,
        loads: Loads,
        count: Callable[[str, Reason], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._loads = loads
        self._count = count
        self._sleep = sleep
        self._clock = loads.changes.clock
        loads.changes.on_refused = self._refused

    def ended(self, load: Load, outcome: str) -> None:
        """Takes in how an attempt ended. A call in flight for each of these: keep it short."""
        if outcome == "OK":
            load.calls += 1
            if load.faults_in_a_row:
                self._answered(load)
        elif outcome not in FAULTS:
            if outcome not in UNCOUNTED:
                load.calls += 1
                self._answered(load)
            elif load.trial:
                load.end_trial(now_s=self._clock())
        # A broken connection is told as such, and once for all the calls that break with it.
        elif outcome != "UNREACHABLE" and (
            outcome != "UNAVAILABLE" or load.cool_until_s <= self._clock()
        ):
            self._fault(load)

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            await self._sleep(self._policy.interval_s)
            for _ in self._sweeping():
                await self._sleep(0)

    def sweep(self) -> None:
        """Compares what the endpoints of each backend did since the last sweep."""
        for _ in self._sweeping():
            pass

    def _sweeping(self) -> Iterator[None]:
        """In pieces, so that ten thousand endpoints do not hold the event loop."""
        backends: dict[str, list[tuple[Load, Seen]]] = {}
        enough = min(self._policy.failure_percentage_requests, self._policy.success_rate_requests)
        for number, load in enumerate(list(self._loads)):
            if number % SWEPT_AT_ONCE == 0:
                yield
            calls, faults = load.calls - load.swept_calls, load.faults - load.swept_faults
            load.swept_calls, load.swept_faults = load.calls, load.faults
            if load.ejected:
                continue
            if load.ejections:
                load.ejections -= 1
            if calls >= enough:
                seen = Seen(calls=calls, faults=faults)
                backends.setdefault(load.endpoint.backend, []).append((load, seen))
        if self._policy.mode != "off":
            for found in backends.values():
                yield
                self._compare(found)

    def _compare(self, found: Sequence[tuple[Load, Seen]]) -> None:
        least = least_success_percent((seen for _, seen in found), self._policy)
        failing = [(load, seen) for load, seen in found if seen.faults]
        for load, seen in sorted(failing, key=lambda one: one[1].success_percent):
            if seen.calls >= self._policy.success_rate_requests and seen.success_percent < least:
                self._eject(load, "success_rate", f"{seen.success_percent:.1f} % of calls succeed")
            elif too_many_failures(seen, self._policy):
                why = f"{100 - seen.success_percent:.1f} % of calls fail"
                self._eject(load, "failure_percentage", why)

    def _refused(self, load: Load) -> None:
        # A server that is away for long is no outlier: it counts again once it was connected to.
        if load.refusals == 1 or load.trial:
            self._fault(load)
        load.changes.on_doubt(load)

    def _answered(self, load: Load) -> None:
        if not load.ejected:
            load.faults_in_a_row = 0
        elif load.trial:
            load.readmit()

    def _fault(self, load: Load) -> None:
        load.calls += 1
        load.faults += 1
        if self._policy.mode == "off":
            return
        load.faults_in_a_row += 1
        if load.ejected:
            if load.trial:
                self._take_out(load, "failed_trial", "its trial failed")
        elif load.faults_in_a_row >= self._policy.consecutive_faults:
            self._eject(load, "consecutive_faults", f"{load.faults_in_a_row} faults in a row")
            if not load.ejected:  # It is looked at again after as many more.
                load.faults_in_a_row = 0

    def _eject(self, load: Load, reason: Reason, why: str) -> None:
        if self._room(load):
            if self._policy.mode == "enforce":
                self._take_out(load, reason, why)
                return
            self._count(load.endpoint.backend, reason)
            _log.info(
                "endpoint would be ejected",
                backend=load.endpoint.backend,
                address=load.endpoint.address,
                why=why,
            )

    def _take_out(self, load: Load, reason: Reason, why: str) -> None:
        self._count(load.endpoint.backend, reason)
        longest_s = max(self._policy.base_s, self._policy.max_s)
        for_s = min(self._policy.base_s * (load.ejections + 1), longest_s)
        load.eject(why=why, now_s=self._clock(), for_s=for_s)

    def _room(self, load: Load) -> bool:
        """Whether the floor allows one more to be out, whatever the others are out for."""
        now_s = self._clock()
        backend = self._loads.backend(load.endpoint.backend)
        out = sum(not other.fit(now_s) for other in backend if other is not load)
        return load in backend and out < allowed_out(len(backend), self._policy.max_percent)
