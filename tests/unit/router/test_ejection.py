"""Ejection: for faults in a row, for outliers, longer each time, and never below the floor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import load

from aiflow_router.balancing.ejection import (
    EjectionPolicy,
    Outliers,
    Seen,
    allowed_out,
    least_success_percent,
    too_many_failures,
)
from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.outcome import FAULTS, UNCOUNTED
from aiflow_router.balancing.verdict import HealthPolicy, Verdict
from aiflow_router.catalog.endpoint import State
from aiflow_router.catalog.snapshot import Change, Entry, Snapshot, build, whole

POLICY = EjectionPolicy()
UNREACHABLE = "UNREACHABLE"


def grown(entries: list[Entry]) -> tuple[Snapshot, Change]:
    """What a follower is told when these are there, old and new."""
    snapshot = build(entries, version=1)
    return snapshot, whole(snapshot)


class World:
    """Endpoints of one backend, a clock that is moved by hand, and what was counted."""

    def __init__(self, count: int, policy: EjectionPolicy = POLICY) -> None:
        self.now_s = 0.0
        self.loads = Loads(clock=lambda: self.now_s)
        entries = [Entry(endpoint=load(n).endpoint, state=State.READY) for n in range(count)]
        self.loads.follow(*grown(entries))
        self.each = list(self.loads)
        self.counted: list[str] = []
        self.outliers = Outliers(
            policy, loads=self.loads, count=lambda backend, reason: self.counted.append(reason)
        )

    def call(self, number: int, *outcomes: str) -> Load:
        item = self.each[number]
        for outcome in outcomes:
            self.outliers.ended(item, outcome)
            if outcome == UNREACHABLE:
                item.refused(now_s=self.now_s)
        return item

    def out(self) -> int:
        return sum(item.ejected for item in self.each)


@pytest.mark.parametrize(
    ("outcomes", "ejected"),
    [
        pytest.param(["INTERNAL"] * 4, False, id="four faults are bad luck"),
        pytest.param(["INTERNAL"] * 5, True, id="five in a row are not"),
        pytest.param(
            ["INTERNAL", "UNKNOWN", "DATA_LOSS", "PER_TRY_TIMEOUT", "ROUTE_TIMEOUT"],
            True,
            id="of whatever kinds",
        ),
        pytest.param([*["INTERNAL"] * 4, "OK", "INTERNAL"], False, id="an answer starts anew"),
        pytest.param([*["INTERNAL"] * 4, "NOT_FOUND", "INTERNAL"], False, id="any answer does"),
        pytest.param([*["INTERNAL"] * 4, "CANCELLED", "INTERNAL"], True, id="a cancelled call not"),
        pytest.param(["RESOURCE_EXHAUSTED"] * 50, False, id="a busy server is no broken one"),
        pytest.param(["INVALID_ARGUMENT"] * 50, False, id="the caller's error is the caller's"),
        pytest.param(["DEADLINE_EXCEEDED"] * 50, False, id="so is the caller's hurry"),
        pytest.param([UNREACHABLE] * 50, False, id="a connection refused at once counts once"),
        pytest.param(["UNAVAILABLE"] * 5, True, id="an endpoint that says so itself is out"),
    ],
)
def test_faults_in_a_row(outcomes: list[str], *, ejected: bool) -> None:
    world = World(3)
    assert world.call(0, *outcomes).ejected == ejected
    assert world.counted == ["consecutive_faults"] * ejected


def test_calls_that_break_with_one_connection_count_as_one_fault() -> None:
    world = World(3)
    item = world.each[0]
    item.refused(now_s=0.0)
    world.call(0, *["UNAVAILABLE"] * 20)
    assert (item.ejected, item.faults) == (False, 1)
    for _ in range(4):  # But one that comes back and breaks each time is out for good.
        item.connected()
        item.refused(now_s=0.0)
    assert item.ejected


def test_a_server_that_is_away_for_long_is_not_ejected_for_that() -> None:
    world = World(3)
    for _ in range(20):
        item = world.call(0, UNREACHABLE)
        world.now_s += 11
    assert (item.ejected, item.faults) == (False, 1)


def test_a_trial_that_finds_no_connection_has_failed() -> None:
    world = World(3)
    item = world.call(0, UNREACHABLE, *["INTERNAL"] * 5)
    world.now_s = 31.0
    item.begin_trial(now_s=31.0)
    world.call(0, UNREACHABLE)
    assert (item.trial, item.ejections) == (False, 2)


def test_an_ejection_lasts_longer_each_time_and_is_forgotten_in_time() -> None:
    world = World(3)
    item = world.call(0, *["INTERNAL"] * 5)
    lasted = []
    for _ in range(12):
        lasted.append(item.ejected_until_s - world.now_s)
        world.now_s = item.ejected_until_s
        item.begin_trial(now_s=world.now_s)
        world.call(0, "INTERNAL")
    assert lasted == [30 * n for n in range(1, 11)] + [300, 300]
    item.begin_trial(now_s=world.now_s)
    world.call(0, "OK")
    assert not item.ejected
    assert item.ramps_from_s == world.now_s
    for _ in range(20):
        world.outliers.sweep()
    assert world.call(0, *["INTERNAL"] * 5).ejected_until_s == world.now_s + 30


def test_only_the_trial_decides() -> None:
    world = World(3)
    item = world.call(0, *["INTERNAL"] * 5)
    world.call(0, "OK", "OK", "INTERNAL")
    assert (item.ejected, item.ejections) == (True, 1)
    world.now_s = 31.0
    item.begin_trial(now_s=31.0)
    world.call(0, "CANCELLED")
    assert (item.ejected, item.trial, item.ejected_until_s) == (True, False, 31.0)


@pytest.mark.parametrize(
    ("endpoints", "percent", "expected"),
    [
        (1, 50, 0),
        (1, 100, 0),
        (2, 50, 1),
        (3, 50, 1),
        (4, 50, 2),
        (5, 10, 1),
        (5, 100, 4),
        (20, 10, 2),
    ],
)
def test_how_many_may_be_out(endpoints: int, percent: float, expected: int) -> None:
    assert allowed_out(endpoints, percent) == expected


OUTCOMES = sorted({*FAULTS, *UNCOUNTED, "OK", "NOT_FOUND"})


@given(
    count=st.integers(1, 7),
    percent=st.floats(1, 100),
    steps=st.lists(
        st.tuples(
            st.integers(0, 6), st.sampled_from(OUTCOMES), st.integers(1, 60), st.floats(0, 40)
        ),
        max_size=60,
    ),
)
def test_whatever_happens_the_floor_holds(
    count: int, percent: float, steps: list[tuple[int, str, int, float]]
) -> None:
    world = World(count, EjectionPolicy(max_percent=percent))
    for number, outcome, times, wait_s in steps:
        before = world.out()
        item = world.call(number % count, *[outcome] * times)
        world.now_s += wait_s
        world.outliers.sweep()
        assert world.out() <= max(allowed_out(count, percent), 0)
        assert world.out() < count
        if world.out() > before:  # And then somebody is left who is fit.
            assert any(other.fit(world.now_s) or other is item for other in world.each)
        if item.ejected and item.ejected_until_s <= world.now_s:
            item.begin_trial(now_s=world.now_s)
            world.call(number % count, outcome)
            assert item.ejected == (outcome in FAULTS | UNCOUNTED)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(Seen(calls=50, faults=43), True, id="86 % of 50"),
        pytest.param(Seen(calls=50, faults=42), False, id="84 % of 50"),
        pytest.param(Seen(calls=49, faults=49), False, id="too few to tell"),
    ],
)
def test_too_many_failures(seen: Seen, *, expected: bool) -> None:
    assert too_many_failures(seen, POLICY) == expected


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        pytest.param([0, 0, 0, 0, 40], 60.1, id="one of five that fails for 40 % is an outlier"),
        pytest.param([0, 0, 0, 40], 0.0, id="four are too few to compare"),
        pytest.param([40, 40, 40, 40, 40], 60.0, id="where all fail none is"),
        pytest.param([0, 0, 0, 0, 1], 95.0, id="one failed call in a hundred is not"),
    ],
)
def test_an_outlier_succeeds_less_than(faults: list[int], expected: float) -> None:
    seen = [Seen(calls=100, faults=count) for count in faults]
    assert least_success_percent(seen, POLICY) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        pytest.param(["OK", "INTERNAL", "INTERNAL"] * 40, "success_rate", id="worse than others"),
        pytest.param([*["INTERNAL"] * 9, "OK"] * 6, "failure_percentage", id="hardly ever right"),
    ],
)
def test_the_sweep_ejects(calls: list[str], reason: str) -> None:
    world = World(6, EjectionPolicy(consecutive_faults=10))
    for number in range(1, 6 if reason == "success_rate" else 1):
        world.call(number, *["OK"] * 120)
    world.call(0, *calls)
    assert world.out() == 0
    world.outliers.sweep()
    assert (world.counted, world.each[0].ejected) == ([reason], True)


def test_the_sweep_looks_at_its_interval_only() -> None:
    world = World(3)
    world.call(0, *["INTERNAL", "INTERNAL", "INTERNAL", "INTERNAL", "OK"] * 9)
    world.outliers.sweep()
    world.call(0, *["OK"] * 5)
    world.outliers.sweep()
    assert world.counted == []


def test_a_shadow_counts_and_ejects_none_and_off_does_neither() -> None:
    shadow = World(3, EjectionPolicy(mode="shadow"))
    shadow.call(0, *["INTERNAL"] * 10)
    assert (shadow.out(), shadow.counted) == (0, ["consecutive_faults"] * 2)
    off = World(3, EjectionPolicy(mode="off"))
    off.call(0, *["INTERNAL"] * 100)
    off.outliers.sweep()
    assert (off.out(), off.counted) == (0, [])


def test_a_server_that_registers_again_starts_anew() -> None:
    world = World(2)
    item = world.call(0, *["INTERNAL"] * 5)
    item.fails("it says NOT_SERVING")
    entries = [Entry(endpoint=load(n).endpoint, state=State.READY) for n in range(2)]
    world.loads.follow(*grown(entries))
    assert item.fit(world.now_s)
    assert item in world.loads


def test_who_joins_later_is_new_but_not_who_is_there_at_the_start() -> None:
    now_s = 0.0
    loads = Loads(clock=lambda: now_s, slow_start_s=10.0)
    entries = [Entry(endpoint=load(n).endpoint, state=State.READY) for n in range(2)]
    now_s = 5.0
    loads.follow(*grown(entries[:1]))
    now_s = 11.0
    loads.follow(*grown(entries))
    assert [item.ramps_from_s for item in loads] == [float("-inf"), 11.0]


@pytest.mark.parametrize(
    ("start", "checks", "expected"),
    [
        pytest.param(Verdict(), "-", True, id="one failed check is not enough"),
        pytest.param(Verdict(), "--", False, id="two are"),
        pytest.param(Verdict(), "-+-", True, id="in a row"),
        pytest.param(Verdict(), "--+", False, id="one passed check is not enough"),
        pytest.param(Verdict(), "--++", True, id="two are enough to return"),
        pytest.param(Verdict.refusing(HealthPolicy()), "+", True, id="its own word is"),
    ],
)
def test_the_verdict_of_checks(start: Verdict, checks: str, *, expected: bool) -> None:
    for check in checks:
        start = start.after(passed=check == "+", policy=HealthPolicy())
    assert start.healthy == expected
