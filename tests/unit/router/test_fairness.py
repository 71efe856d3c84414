"""One tenant's burst does not slow another: a gate in virtual time, tenants with their rates."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from aiflow_router.limits.concurrency import End
from aiflow_router.limits.gate import Gate, Refusal, Ticket

SLOTS, SERVICE_S = 16, 0.05
CAPACITY = SLOTS / SERVICE_S
DEADLINE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Tenant:
    rate: float
    weight: float = 1.0
    priority: str = "normal"


@dataclass(kw_only=True)
class Served:
    """By tenant: times from arrival to answer, and calls that were not answered."""

    took_s: dict[str, list[float]] = field(default_factory=dict)
    shed: Counter[str] = field(default_factory=Counter)

    def p99_s(self, tenant: str) -> float:
        ordered = sorted(self.took_s[tenant])
        return ordered[int(0.99 * (len(ordered) - 1))]


class Mesh:
    """A gate before SLOTS servers. Calls come at random, whatever became of earlier ones."""

    def __init__(self, tenants: Mapping[str, Tenant], *, queue: int) -> None:
        self.served = Served(took_s={tenant: [] for tenant in tenants})
        self._gate = Gate(limit=SLOTS, queue=queue, rng=random.Random(1))
        self._tenants = tenants
        self._rng = random.Random(2)
        self._now_s = 0.0
        self._ids = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self, seconds: float) -> Served:
        for tenant in self._tenants:
            self._in(0.0, lambda tenant=tenant: self._come(tenant))  # type: ignore[misc]
        while self._now_s < seconds:
            self._now_s, _, do = heapq.heappop(self._events)
            do()
        return self.served

    def _in(self, after_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + after_s, next(self._ids), do))

    def _come(self, tenant: str) -> None:
        one, arrived_s = self._tenants[tenant], self._now_s
        self._in(self._rng.expovariate(one.rate), lambda: self._come(tenant))
        if self._gate.try_enter():
            self._begin(tenant, arrived_s)
            return
        ticket = self._gate.join(
            tenant=tenant,
            weight=one.weight,
            priority=one.priority,
            deadline_s=arrived_s + DEADLINE_S,
            now_s=arrived_s,
        )
        if isinstance(ticket, Refusal):
            self.served.shed[tenant] += 1
        else:
            ticket.wake = lambda: self._woken(ticket, arrived_s)

    def _woken(self, ticket: Ticket, arrived_s: float) -> None:
        if ticket.refusal is not None:
            self.served.shed[ticket.tenant] += 1
        else:
            self._begin(ticket.tenant, arrived_s)

    def _begin(self, tenant: str, arrived_s: float) -> None:
        # Were they all equal, the places would be free at the same moments for ever.
        service_s = SERVICE_S * self._rng.uniform(0.5, 1.5)

        def end() -> None:
            self.served.took_s[tenant].append(self._now_s - arrived_s)
            self._gate.leave(End.ANSWERED, service_s, self._now_s)

        self._in(service_s, end)


def simulated(tenants: Mapping[str, Tenant], *, seconds: float = 60.0, queue: int = 128) -> Served:
    return Mesh(tenants, queue=queue).run(seconds)


def test_who_sends_fifty_times_less_waits_no_longer_than_alone() -> None:
    quiet, loud = Tenant(rate=20), Tenant(rate=1000)
    alone = simulated({"quiet": quiet})
    beside = simulated({"quiet": quiet, "loud": loud})
    assert beside.p99_s("quiet") <= 1.2 * alone.p99_s("quiet")
    assert not beside.shed["quiet"]
    assert beside.shed["loud"] > len(beside.took_s["loud"]), "it is far too much"


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([1, 1], id="two of the same weight"),
        pytest.param([1, 3], id="three times the weight"),
        pytest.param([1, 2, 5], id="three tenants"),
    ],
)
def test_who_all_send_too_much_get_their_weights(weights: list[int]) -> None:
    tenants = {
        str(number): Tenant(rate=CAPACITY * (1 + 4 * number), weight=weight)
        for number, weight in enumerate(weights)
    }
    served = simulated(tenants, seconds=30)
    total = sum(map(len, served.took_s.values()))
    for number, weight in enumerate(weights):
        share = len(served.took_s[str(number)]) / total
        assert share == pytest.approx(weight / sum(weights), rel=0.05)


def test_priorities_hold_between_tenants() -> None:
    served = simulated(
        {
            "high": Tenant(rate=0.3 * CAPACITY, priority="high"),
            "normal": Tenant(rate=3 * CAPACITY),
        },
        seconds=30,
    )
    assert served.shed["high"] == 0
    assert served.p99_s("high") < 2 * SERVICE_S
