"""Lines of limits in virtual time: fair, in order, nobody lost, and never more than the buckets."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_router.limits.buckets import NEVER_S, Standing, Verdict
from aiflow_router.limits.gate import Outlook, Refusal
from aiflow_router.limits.line import Lines, Place, placed, waits_for
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Ask, Kind, Mode, Rule


def rule(name: str, *, wait: bool = True, mode: Mode = "enforce") -> Rule:
    return Rule(name=name, amount=1.0, burst=1.0, wait=wait, mode=mode)


def ask(of: Rule, cost: float = 1.0) -> Ask:
    return Ask(rule=of, bucket=of.name, cost=cost)


@pytest.mark.parametrize(
    ("rules", "waits_s", "expected"),
    [
        pytest.param([rule("a")], [2.0], "a", id="for what it is short of"),
        pytest.param([rule("a"), rule("b")], [2.0, 3.0], "b", id="for what takes longest"),
        pytest.param([rule("a"), rule("b")], [2.0, 0.0], "a", id="not for what it has"),
        pytest.param(
            [rule("a"), rule("b", wait=False)], [2.0, 1.0], "", id="not where another refuses it"
        ),
        pytest.param(
            [rule("a"), rule("b", wait=False)],
            [2.0, 0.0],
            "a",
            id="another that it has enough of does not matter",
        ),
        pytest.param([rule("a")], [NEVER_S], "", id="not for what never comes"),
        pytest.param(
            [rule("a"), rule("b", mode="shadow")], [2.0, 9.0], "a", id="not for a rule in shadow"
        ),
    ],
)
def test_what_a_call_waits_for(rules: list[Rule], waits_s: list[float], expected: str) -> None:
    asks = tuple(ask(one) for one in rules)
    standings = tuple(Standing(0.0, wait_s, 0.0) for wait_s in waits_s)
    found = waits_for(asks, Verdict(granted=False, standings=standings))
    assert ("" if found is None else found.rule.name) == expected


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """Calls come `every_s` at random, `burst` of them at the start."""

    every_s: float
    burst: int = 0
    weight: float = 1.0
    priority: str = "normal"
    cost: float = 1.0
    patience_s: float = math.inf


@dataclass(kw_only=True)
class Seen:
    """By tenant: how long calls waited that were granted; and when, with their cost."""

    waited_s: dict[str, list[float]] = field(default_factory=dict)
    granted: list[tuple[float, str, float]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def share(self, tenant: str) -> float:
        total = sum(cost for _, _, cost in self.granted)
        return sum(cost for _, of, cost in self.granted if of == tenant) / total

    def p99_s(self, tenant: str) -> float:
        ordered = sorted(self.waited_s[tenant])
        return ordered[int(0.99 * (len(ordered) - 1))]


class Simulated:
    """As rpc.waiting does it, with a clock that is set by hand."""

    def __init__(self, limit: Rule, tenants: Mapping[str, Tenant], *, seed: int = 1) -> None:
        self.now_s = 0.0
        self.seen = Seen(waited_s={name: [] for name in tenants})
        self.lines = Lines(random.Random(seed))
        self._rule = limit
        self._tenants = tenants
        self._rng = random.Random(seed)
        self._memory = Memory(clock=lambda: self.now_s, wall=lambda: self.now_s)
        self._came_s: dict[Place, float] = {}

    def run(self, seconds: float) -> Seen:
        due = [(0.0, name) for name, of in self._tenants.items() for _ in range(of.burst)]
        for name, of in self._tenants.items():
            at_s = self._rng.expovariate(1 / of.every_s)
            while at_s < seconds:
                due.append((at_s, name))
                at_s += self._rng.expovariate(1 / of.every_s)
        for at_s, name in sorted(due):
            self._until(at_s)
            self.now_s = at_s
            self._come(name)
        self._until(seconds)
        self.now_s = seconds
        return self.seen

    def _come(self, name: str) -> None:
        of = self._tenants[name]
        asks = (ask(self._rule, of.cost),)
        wanted = self.lines.behind(asks, self.now_s)
        verdict = self._memory.decide(asks, None if wanted else f"{name}.{self._rng.random()}")
        if wanted is None and verdict.granted:
            self.seen.waited_s[name].append(0.0)
            self.seen.granted.append((self.now_s, name, of.cost))
            return
        place = placed(
            asks,
            asks[0],
            tenant=name,
            weight=of.weight,
            priority=of.priority,
            deadline_s=self.now_s + of.patience_s,
        )
        met = self.lines.join(place, verdict.standings[0], self.now_s)
        if isinstance(met, Refusal):
            self.seen.refused.append((name, met.reason))
        else:
            self._came_s[place] = self.now_s
            place.wake = lambda: self._woken(place)

    def _woken(self, place: Place) -> None:
        if place.refusal is not None and self._came_s.pop(place, None) is not None:
            self.seen.refused.append((place.tenant, place.refusal.reason))

    def _until(self, end_s: float) -> None:
        while (place := self._next()) is not None:
            due_s = max(self.now_s, self.lines.due_s(place))
            if due_s >= end_s:
                return
            self.now_s = due_s
            self.lines.tries(place)
            verdict = self._memory.decide(place.asks, str(id(place)))
            self.lines.tried(place, verdict, due_s)
            if verdict.granted:
                came_s = self._came_s.pop(place)
                self.seen.waited_s[place.tenant].append(due_s - came_s)
                self.seen.granted.append((due_s, place.tenant, place.cost))

    def _next(self) -> Place | None:
        line = self.lines._lines.get(self._rule.name)
        return None if line is None else line.queue.first()

    def waiting(self) -> int:
        return sum(self.lines.waiting().values())


def limit(amount: float, *, burst: float = 1.0, kind: Kind = "rate", queue: int = 1024) -> Rule:
    return Rule(name="r", amount=amount, burst=burst, kind=kind, wait=True, queue=queue)


def test_who_sends_fifty_times_less_waits_for_one_turn_at_most() -> None:
    tenants = {"quiet": Tenant(every_s=0.05), "loud": Tenant(every_s=0.001, burst=500)}
    seen = Simulated(limit(100), tenants).run(15)
    # A turn is 10 ms. Its own calls come at random too, so now and then one is behind another.
    assert seen.p99_s("quiet") < 0.05
    assert not [name for name, _ in seen.refused if name == "quiet"]


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [1, 2, 5]])
@pytest.mark.parametrize("kind", ["rate", "strict"])
def test_shares_are_those_of_the_weights(weights: list[int], kind: Kind) -> None:
    tenants = {
        str(n): Tenant(every_s=0.004 / (n + 1), weight=weight, cost=1.0 + n % 2)
        for n, weight in enumerate(weights)
    }
    seen = Simulated(limit(100, kind=kind, burst=2), tenants).run(25)
    for n, weight in enumerate(weights):
        assert seen.share(str(n)) == pytest.approx(weight / sum(weights), rel=0.05)


def test_the_higher_priority_goes_first() -> None:
    tenants = {
        "high": Tenant(every_s=0.04, priority="high"),
        "normal": Tenant(every_s=0.002),
    }
    seen = Simulated(limit(100), tenants).run(25)
    assert seen.p99_s("high") < 0.05
    assert not [name for name, _ in seen.refused if name == "high"]


def test_the_lowest_priority_gets_its_turn_in_the_end() -> None:
    tenants = {
        "high": Tenant(every_s=0.0098, priority="high", burst=50),
        "low": Tenant(every_s=1e9, burst=3, priority="low"),
    }
    seen = Simulated(limit(100), tenants).run(100)
    assert len(seen.waited_s["low"]) == 3
    assert 60 <= max(seen.waited_s["low"]) < 62, "twice 30 s, and its turn"


def test_what_is_let_in_can_keep_its_deadline() -> None:
    tenants = {"a": Tenant(every_s=0.002, patience_s=1.0)}
    sim = Simulated(limit(100), tenants)
    seen = sim.run(20)
    assert {reason for _, reason in seen.refused} == {"DEADLINE_UNREACHABLE"}
    assert 0.9 < max(seen.waited_s["a"]) < 1.001
    assert len(seen.granted) > 0.98 * 100 * 20, "and nothing of the rate is lost"


COSTS = st.floats(0.1, 4.0)


@given(
    amount=st.floats(0.5, 50),
    kind=st.sampled_from(["rate", "strict"]),
    tenants=st.dictionaries(
        st.sampled_from("ABCD"),
        st.builds(
            Tenant,
            every_s=st.floats(0.2, 5),
            burst=st.integers(0, 20),
            weight=st.floats(0.2, 5),
            priority=st.sampled_from(["high", "normal", "low"]),
            cost=COSTS,
        ),
        min_size=1,
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=40)
def test_nobody_is_lost_or_starves_and_no_more_is_granted_than_there_is(
    *, amount: float, kind: Kind, tenants: dict[str, Tenant], seed: int
) -> None:
    holds = max(4.0, amount)
    one = Rule(
        name="r",
        amount=holds,
        period_s=holds / amount,
        burst=4.0,
        kind=kind,
        wait=True,
        queue=50,
    )
    sim = Simulated(one, tenants, seed=seed)
    seen = sim.run(20)
    came = len(seen.granted) + len(seen.refused) + sim.waiting()
    assert came == sum(map(len, seen.waited_s.values())) + len(seen.refused) + len(sim._came_s)
    times = [(at_s, cost) for at_s, _, cost in seen.granted]
    most = holds if kind == "strict" else 4.0 + amount * 20
    within = one.period_s if kind == "strict" else 20.0
    for index, (at_s, _) in enumerate(times):
        window = [cost for then_s, cost in times[index:] if then_s < at_s + within]
        assert sum(window) <= most * (1 + 1e-6)
    # Nobody comes any more: all are served.
    sim._until(1e9)
    assert sim.waiting() == 0
    assert len(sim.lines) == 0


def test_with_places_that_come_free_the_first_is_woken() -> None:
    woken: list[str] = []
    held = Rule(name="r", amount=1.0, kind="concurrency", wait=True)
    memory, lines = Memory(clock=lambda: 0.0), Lines(random.Random(1))
    assert asyncio.run(memory.take((ask(held),), holder="inside")).granted
    for name in ("first", "second"):
        place = placed(
            (ask(held),), ask(held), tenant=name, weight=1, priority="", deadline_s=math.inf
        )
        verdict = memory.decide(place.asks, name)
        lines.join(place, verdict.standings[0], 0.0)
        place.wake = lambda name=name: woken.append(name)  # type: ignore[misc]
        assert lines.due_s(place) > 0
    memory.settle((ask(held),), (1.0,), holder="inside")
    lines.settled((ask(held),), (1.0,), 0.0)
    assert woken == ["first"]


@given(
    before=st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from(["high", "normal", "low"]), COSTS),
        max_size=12,
    ),
    priority=st.sampled_from(["high", "normal", "low", ""]),
    cost=COSTS,
)
def test_the_outlook_is_what_the_next_call_meets(
    before: list[tuple[str, str, float]], priority: str, cost: float
) -> None:
    one = Rule(name="r", amount=2.0, burst=4.0, wait=True, queue=6)
    memory, lines = Memory(clock=lambda: 0.0), Lines(random.Random(1))
    memory.decide((ask(one, 4.0),), "first")

    def join(tenant: str, priority: str, cost: float) -> object:
        asks = (ask(one, cost),)
        place = placed(
            asks, asks[0], tenant=tenant, weight=1, priority=priority, deadline_s=math.inf
        )
        return lines.join(place, memory.decide(asks, None).standings[0], 0.0)

    for tenant, of, costs in before:
        join(tenant, of, costs)
    counted, waiting = dict(lines.refused), lines.waiting()
    met = lines.outlook(
        ask(one, cost),
        memory.decide((ask(one, cost),), None).standings[0],
        tenant="B",
        weight=1.0,
        priority=priority,
        now_s=0.0,
    )
    assert (dict(lines.refused), lines.waiting()) == (counted, waiting), "asking counts nothing"
    found = join("B", priority, cost)
    if isinstance(found, Refusal):
        assert met.refusal is not None
        assert (met.refusal.reason, met.refusal.waiting) == (found.reason, found.waiting)
        assert met.wait_s == pytest.approx(found.wait_s)
    else:
        assert met.refusal is None
        assert isinstance(found, Outlook)
        assert found.ahead == met.ahead
        assert found.wait_s == pytest.approx(met.wait_s)
