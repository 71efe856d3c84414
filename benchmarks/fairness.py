"""Whether one tenant's burst slows another, by simulation with the router's own gate and lines.

    .venv/bin/python benchmarks/fairness.py

Virtual time, so that the figures are the queues' and not this machine's. A quiet tenant and one of
equal weight that sends 50 times more go to one model, once through its gate (16 calls at a time)
and once by a limit that lets calls wait (320 a second, which is what passes the gate as well). A
call takes 25 to 75 ms once it is in. The quiet one sends an eighth of its fair share: who comes
near to that waits for its own calls.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import report

from aiflow_router.limits.concurrency import End
from aiflow_router.limits.gate import Gate, Refusal
from aiflow_router.limits.line import Lines, placed
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Ask, Rule

SECONDS = 60.0
SLOTS, SERVICE_S = 16, 0.05
QUEUE = 128
LIMIT = Rule(name="limit", amount=SLOTS / SERVICE_S, burst=1.0, wait=True, queue=QUEUE)
QUIET_PER_S = 20.0
TIMES = 50
# All of them send more than there is.
WEIGHTS = {"one": 1.0, "two": 2.0, "five": 5.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    rate: float
    weight: float = 1.0


# Lets a call in, now or later, by calling what it is given; or never, where it is shed.
Enter = Callable[[str, float, Callable[[], None]], None]


class World:
    """Virtual time. Calls come at random, whatever became of earlier ones."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._ids = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._rng = random.Random(1)  # noqa: S311 - spreads calls

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when_s, self.now_s), next(self._ids), do))

    def run(
        self, tenants: Mapping[str, Tenant], enter: Enter, left: Callable[[float], None]
    ) -> Mapping[str, list[float]]:
        """How long answered calls took, by tenant."""
        took_s: dict[str, list[float]] = {name: [] for name in tenants}

        def come(name: str) -> None:
            came_s = self.now_s
            self.at(came_s + self._rng.expovariate(tenants[name].rate), lambda: come(name))

            def begin() -> None:
                service_s = SERVICE_S * self._rng.uniform(0.5, 1.5)

                def end() -> None:
                    took_s[name].append(self.now_s - came_s)
                    left(service_s)

                self.at(self.now_s + service_s, end)

            enter(name, tenants[name].weight, begin)

        for name in tenants:
            self.at(0.0, lambda name=name: come(name))  # type: ignore[misc]
        while self.now_s < SECONDS:
            self.now_s, _, do = heapq.heappop(self._events)
            do()
        return took_s


def by_gate(tenants: Mapping[str, Tenant]) -> Mapping[str, list[float]]:
    world = World()
    gate = Gate(limit=SLOTS, queue=QUEUE, rng=random.Random(1))  # noqa: S311

    def enter(name: str, weight: float, begin: Callable[[], None]) -> None:
        if gate.try_enter():
            begin()
            return
        ticket = gate.join(
            tenant=name, weight=weight, priority="", deadline_s=math.inf, now_s=world.now_s
        )
        if not isinstance(ticket, Refusal):
            ticket.wake = lambda: begin() if ticket.refusal is None else None

    return world.run(
        tenants, enter, lambda service_s: gate.leave(End.ANSWERED, service_s, world.now_s)
    )


def by_limit(tenants: Mapping[str, Tenant]) -> Mapping[str, list[float]]:
    world = World()
    memory, lines = Memory(clock=lambda: world.now_s), Lines(random.Random(1))  # noqa: S311
    ask = Ask(rule=LIMIT, bucket=LIMIT.name, cost=1.0)

    def enter(name: str, weight: float, begin: Callable[[], None]) -> None:
        behind = lines.behind((ask,), world.now_s)
        verdict = memory.decide((ask,), None if behind else name)
        if behind is None and verdict.granted:
            begin()
            return
        place = placed((ask,), ask, tenant=name, weight=weight, priority="", deadline_s=math.inf)

        def woken() -> None:
            if place.waits and (due_s := lines.due_s(place)) < math.inf:
                world.at(due_s, tried)

        def tried() -> None:
            if not place.waits or lines.due_s(place) > world.now_s:
                return
            lines.tries(place)
            said = memory.decide((ask,), name)
            lines.tried(place, said, world.now_s)
            if said.granted:
                begin()
            else:
                woken()

        place.wake = woken
        lines.join(place, verdict.standings[0], world.now_s)

    return world.run(tenants, enter, lambda _: None)


def p99_s(took_s: list[float]) -> float:
    ordered = sorted(took_s)
    return ordered[int(0.99 * (len(ordered) - 1))]


WANTED = {"quiet_tenant_p99_ratio": "<= 1.2", "share_error": "<= 0.05"}
WAYS = {"gate": by_gate, "limit": by_limit}


def figures() -> dict[str, float]:
    """Prints a table; the worse of the two ways, and beside it each."""
    found = {"quiet_tenant_p99_ratio": 0.0, "share_error": 0.0}
    print(f"{'':8}{'alone p99':>12}{'beside 50x':>12}{'ratio':>8}{'share error':>13}")
    for way, by in WAYS.items():
        quiet = Tenant(rate=QUIET_PER_S)
        alone_s = p99_s(by({"quiet": quiet})["quiet"])
        beside_s = p99_s(by({"quiet": quiet, "loud": Tenant(rate=TIMES * QUIET_PER_S)})["quiet"])
        ratio, error = beside_s / alone_s, share_error(by)
        print(
            f"{way:8}{alone_s * 1000:9.1f} ms{beside_s * 1000:9.1f} ms{ratio:8.3f}{error:13.2%}",
            flush=True,
        )
        found["quiet_tenant_p99_ratio"] = max(found["quiet_tenant_p99_ratio"], ratio)
        found["share_error"] = max(found["share_error"], error)
        found |= {f"quiet_tenant_p99_ratio_{way}": ratio, f"share_error_{way}": error}
    return found


def share_error(by: Callable[[Mapping[str, Tenant]], Mapping[str, list[float]]]) -> float:
    """How far the share of one is from its weight's, as a part of that, where all send too much."""
    greedy = {name: Tenant(rate=400.0 * weight, weight=weight) for name, weight in WEIGHTS.items()}
    served = {name: len(took_s) for name, took_s in by(greedy).items()}
    return max(
        abs(served[name] / sum(served.values()) / (weight / sum(WEIGHTS.values())) - 1)
        for name, weight in WEIGHTS.items()
    )


def main() -> None:
    report.write("fairness", figures(), wanted=WANTED)


if __name__ == "__main__":
    main()
