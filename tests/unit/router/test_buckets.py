"""The buckets in the process: never more than was promised, all or nothing, and nothing kept."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.limits.buckets import NEVER_S, Verdict
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Ask, Rule

NOON_S = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
HOUR_S = 3600.0


@dataclass
class World:
    """Buckets, and clocks that stand still until they are moved."""

    now_s: float = 1000.0
    wall_s: float = NOON_S
    most: int = 1000
    spared: int = 0

    def __post_init__(self) -> None:
        self.memory = Memory(
            clock=lambda: self.now_s, wall=lambda: self.wall_s, most=self.most, spared=self.spared
        )
        self.calls = 0

    def take(self, *asks: Ask, holder: str = "") -> Verdict:
        self.calls += 1
        return asyncio.run(self.memory.take(asks, holder=holder or str(self.calls)))

    def look(self, *asks: Ask) -> Verdict:
        return asyncio.run(self.memory.look(asks))

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall_s += seconds


def ask(rule: Rule, cost: float = 1.0, whose: str = "") -> Ask:
    return Ask(rule=rule, bucket=f"{rule.name}|{whose}" if whose else rule.name, cost=cost)


RATE = Rule(name="rate", amount=4, period_s=60, burst=2)
STRICT = Rule(name="strict", kind="strict", amount=4, period_s=60)
PLACES = Rule(name="places", kind="concurrency", amount=2)
DAY = Rule(name="day", kind="day", amount=3)
MONTH = Rule(name="month", kind="month", amount=3)
TOKENS = Rule(name="tokens", amount=100, burst=100, unit="tokens")


@pytest.mark.parametrize(
    ("rule", "costs", "granted", "wait_s"),
    [
        pytest.param(RATE, [1, 1, 1], 2, 15.0, id="a rate: its burst, then one in 15 s"),
        pytest.param(STRICT, [1] * 5, 4, 60.0, id="strict: so many, and the first again in 60 s"),
        pytest.param(PLACES, [1, 1, 1], 2, None, id="places: until one is free, by estimate"),
        pytest.param(DAY, [1, 1, 1, 1], 3, NEVER_S, id="a quota: nobody waits for tomorrow"),
        pytest.param(TOKENS, [60, 60], 1, 0.2, id="tokens: until there are as many as asked for"),
        pytest.param(TOKENS, [101], 0, NEVER_S, id="more at once than there ever are"),
        pytest.param(TOKENS, [100, 0], 2, None, id="what costs nothing needs nothing"),
    ],
)
def test_what_is_granted(
    rule: Rule, costs: Sequence[float], granted: int, wait_s: float | None
) -> None:
    world = World()
    verdicts = [world.take(ask(rule, cost)) for cost in costs]
    assert [verdict.granted for verdict in verdicts] == [
        number < granted for number in range(len(costs))
    ]
    if wait_s is not None:
        assert verdicts[-1].standings[0].wait_s == pytest.approx(wait_s, abs=1e-5)


@pytest.mark.parametrize("rule", [RATE, STRICT, TOKENS], ids=lambda rule: rule.name)
def test_who_waits_as_long_as_it_is_told_is_let_in(rule: Rule) -> None:
    world = World()
    one = ask(rule, 40 if rule is TOKENS else 1)
    while (verdict := world.take(one)).granted:
        continue
    wait_s = verdict.standings[0].wait_s
    world.passes(wait_s * 0.99)
    assert not world.take(one).granted
    world.passes(wait_s * 0.01 + 1e-9)
    assert world.take(one).granted


def test_all_rules_pass_or_none_is_charged() -> None:
    world = World()
    wide, narrow = replace(RATE, name="wide", burst=5), replace(RATE, name="narrow", burst=1)
    assert world.take(ask(wide), ask(narrow)).granted
    refused = world.take(ask(wide), ask(narrow))
    assert not refused.granted
    assert [standing.wait_s for standing in refused.standings] == [0.0, pytest.approx(15)]
    assert world.look(ask(wide)).standings[0].remaining == 4


def test_a_rule_in_shadow_is_charged_where_it_can_be_and_never_decides() -> None:
    world = World()
    shadow = replace(RATE, name="shadow", mode="shadow", burst=1)
    assert world.take(ask(shadow), ask(RATE)).granted
    second = world.take(ask(shadow), ask(RATE))
    assert second.granted
    assert second.standings[0].wait_s > 0
    assert not world.take(ask(shadow), ask(RATE)).granted


def test_what_is_refused_is_not_charged_to_a_rule_in_shadow() -> None:
    world = World()
    shadow = replace(RATE, name="shadow", mode="shadow")
    full = replace(RATE, name="full", burst=1)
    world.take(ask(full))
    assert not world.take(ask(shadow), ask(full)).granted
    assert world.look(ask(shadow)).standings[0].remaining == 2


def test_a_look_takes_nothing_and_keeps_nothing() -> None:
    world = World()
    for rule in (RATE, STRICT, PLACES, DAY, MONTH, TOKENS):
        assert world.look(ask(rule)).granted
    assert len(world.memory) == 0


@pytest.mark.parametrize(
    ("true", "remaining"),
    [
        pytest.param(30, 70, id="less than was asked for: the rest is there again"),
        pytest.param(60, 40, id="as much as was asked for"),
        pytest.param(90, 10, id="more than was asked for"),
        pytest.param(0, 100, id="it never went anywhere"),
    ],
)
def test_a_call_is_settled_to_its_true_cost(true: float, remaining: float) -> None:
    world = World()
    one = ask(TOKENS, 60)
    world.take(one, holder="a")
    world.memory.settle([one], [true], holder="a")
    assert world.look(one).standings[0].remaining == remaining


def test_more_than_was_there_is_a_debt_that_later_calls_wait_for() -> None:
    world = World()
    one = ask(TOKENS, 60)
    world.take(one, holder="a")
    world.memory.settle([one], [200], holder="a")
    standing = world.look(one).standings[0]
    assert standing.remaining == 0
    assert standing.wait_s == pytest.approx(1.6)  # 100 of debt and 60, at 100 a second
    assert not world.take(ask(TOKENS, 0)).granted


def test_a_place_is_free_again_when_its_call_has_ended() -> None:
    world = World()
    for holder in "ab":
        assert world.take(ask(PLACES), holder=holder).granted
    assert not world.take(ask(PLACES), holder="c").granted
    world.passes(3.0)
    world.memory.settle([ask(PLACES)], [1.0], holder="a")
    world.memory.settle([ask(PLACES)], [1.0], holder="a")  # Told twice, it frees nothing more.
    assert world.take(ask(PLACES), holder="c").granted
    assert not world.take(ask(PLACES), holder="d").granted


def test_a_call_that_never_went_anywhere_leaves_the_log_of_a_strict_rule() -> None:
    world = World()
    for holder in "abcd":
        world.take(ask(STRICT), holder=holder)
    world.memory.settle([ask(STRICT)], [0.0], holder="b")
    assert world.take(ask(STRICT)).granted
    assert not world.take(ask(STRICT)).granted


@pytest.mark.parametrize(
    ("rule", "passes_s", "expected"),
    [
        pytest.param(DAY, 11 * HOUR_S, False, id="the same day"),
        pytest.param(DAY, 13 * HOUR_S, True, id="the next day"),
        pytest.param(MONTH, 13 * HOUR_S, False, id="the next day of the same month"),
        pytest.param(MONTH, 7 * 24 * HOUR_S, True, id="the next month"),
        pytest.param(DAY, -0.5 * HOUR_S, False, id="a clock that was set back a little"),
        pytest.param(DAY, -13 * HOUR_S, False, id="a clock that was set back to yesterday"),
    ],
)
def test_a_quota_begins_anew_with_its_day_or_month(
    rule: Rule, passes_s: float, expected: bool
) -> None:
    world = World()
    for _ in range(3):
        assert world.take(ask(rule)).granted
    world.wall_s += passes_s
    assert world.take(ask(rule)).granted is expected


def test_a_clock_that_was_a_year_ahead_does_not_stop_a_quota_for_a_year() -> None:
    world = World()
    world.wall_s += 365 * 24 * HOUR_S
    for _ in range(3):
        world.take(ask(DAY))
    world.wall_s = NOON_S
    assert not world.take(ask(DAY)).granted
    assert world.look(ask(DAY)).standings[0].reset_s == pytest.approx(12 * HOUR_S)
    world.wall_s += 13 * HOUR_S
    assert world.take(ask(DAY)).granted


def test_a_clock_that_goes_back_fills_nothing_and_takes_nothing() -> None:
    world = World()
    world.take(ask(RATE))
    world.now_s -= 500
    assert world.look(ask(RATE)).standings[0].remaining == 1
    world.now_s += 500
    assert world.look(ask(RATE)).standings[0].remaining == 1


@pytest.mark.parametrize(
    ("after", "remaining"),
    [
        pytest.param(replace(TOKENS, amount=10), 40, id="a lower rate keeps the level"),
        pytest.param(replace(TOKENS, burst=1000), 40, id="more room keeps the level"),
        pytest.param(replace(TOKENS, burst=30), 30, id="less room holds less"),
        pytest.param(replace(TOKENS, kind="day", amount=70), 70, id="another kind begins anew"),
    ],
)
def test_a_changed_rule(after: Rule, remaining: float) -> None:
    world = World()
    world.take(ask(TOKENS, 60))
    world.take(ask(after, 0))
    assert world.look(ask(after, 0)).standings[0].remaining == remaining


def test_what_is_as_good_as_new_is_forgotten() -> None:
    world = World()
    for number in range(500):
        world.take(ask(RATE, whose=str(number)))
        world.passes(1.0)  # One of them is full again after 15 s.
    assert len(world.memory) < 50
    assert world.memory.forgotten == 0


@pytest.mark.parametrize("rule", [RATE, DAY])
def test_a_call_that_said_less_than_it_took_is_charged_though_its_bucket_is_forgotten(
    rule: Rule,
) -> None:
    world = World()
    one = ask(rule, 0)
    world.take(one, holder="it")
    assert len(world.memory) == 0, "full, so it is forgotten"
    before = world.look(one).standings[0].remaining
    world.memory.settle([one], [2.0], holder="it")
    assert world.look(one).standings[0].remaining == before - 2


def test_a_few_are_not_forgotten_for_they_would_be_made_again_for_each_call() -> None:
    world = World(spared=20)
    for number in range(100):
        world.take(ask(RATE, whose=str(number % 20)))
        world.passes(60.0)
    assert len(world.memory) == 20


def test_memory_is_bounded_whatever_callers_invent() -> None:
    world = World(most=100)
    for number in range(1000):
        world.take(ask(DAY, whose=str(number)))
    assert len(world.memory) <= 100
    assert world.memory.forgotten == 900


STEPS = st.lists(
    st.tuples(
        st.floats(0, 40, allow_nan=False),  # time that passes before
        st.floats(0, 3, allow_nan=False),  # cost
        st.floats(0, 3, allow_nan=False),  # true cost, of those that are granted
    ),
    max_size=60,
)


@given(
    steps=STEPS,
    amount=st.floats(0.5, 20),
    period_s=st.sampled_from([1.0, 60.0]),
    burst=st.floats(1, 10),
)
def test_never_more_than_burst_and_rate_times_time(
    steps: list[tuple[float, float, float]], amount: float, period_s: float, burst: float
) -> None:
    rule = Rule(name="a", amount=amount, period_s=period_s, burst=burst)
    world = World()
    granted: list[tuple[float, float]] = []
    for passes_s, cost, _ in steps:
        world.passes(passes_s)
        if world.take(ask(rule, cost)).granted:
            granted.append((world.now_s, cost))
    for begin, (begins_s, _) in enumerate(granted):
        spent = 0.0
        for at_s, cost in granted[begin:]:
            spent += cost
            assert spent <= burst + rule.rate_per_s * (at_s - begins_s) + 1e-6


@given(steps=STEPS)
def test_in_truth_never_more_than_that_and_one_call_on_credit(
    steps: list[tuple[float, float, float]],
) -> None:
    """A call that costs more than it said overdraws by its own cost; the debt is paid first."""
    rule = Rule(name="a", amount=1, burst=3)
    world = World()
    began_s, spent = world.now_s, 0.0
    for number, (passes_s, cost, true) in enumerate(steps):
        world.passes(passes_s)
        one = ask(rule, cost)
        if world.take(one, holder=str(number)).granted:
            world.memory.settle([one], [true], holder=str(number))
            spent += true
        assert spent <= 3 + (world.now_s - began_s) + 3 + 1e-6
        assert world.look(one).standings[0].remaining <= 3


@given(
    passes=st.lists(st.floats(0, 70, allow_nan=False), max_size=80),
    amount=st.integers(1, 5),
)
def test_a_strict_rule_is_crossed_in_no_window(passes: list[float], amount: int) -> None:
    rule = replace(STRICT, amount=amount)
    world = World()
    granted: list[float] = []
    for passes_s in passes:
        world.passes(passes_s)
        if world.take(ask(rule)).granted:
            granted.append(world.now_s)
    for first_s, after_s in zip(granted, granted[amount:], strict=False):
        assert after_s - first_s > 60


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=100))
def test_places_are_never_more_than_there_are(steps: list[tuple[bool, int]]) -> None:
    world = World()
    inside: set[str] = set()
    for comes, number in steps:
        holder = str(number)
        if comes and holder not in inside:
            granted = world.take(ask(PLACES), holder=holder).granted
            assert granted is (len(inside) < 2)
            if granted:
                inside.add(holder)
        elif not comes and holder in inside:
            world.memory.settle([ask(PLACES)], [1.0], holder=holder)
            inside.discard(holder)
    left = world.look(ask(PLACES)).standings[0].remaining
    assert left == max(0, 2 - len(inside))
    assert not math.isnan(left)
