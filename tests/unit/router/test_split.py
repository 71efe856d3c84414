"""Which side a call is for: by weight, steadily for a caller, and none that was stopped."""

import random
import timeit
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.routing.course import Course, courses
from aiflow_router.routing.guard import Guard, Stop
from aiflow_router.routing.policy import Policy
from aiflow_router.routing.split import MAX_CALLERS, Sides, Split, nobody_told, side_of

CALLERS = [f"tenant-{number}" for number in range(4000)]
weights = st.integers(0, 1000)


def sides(split: Split, stops: list[tuple[str, Stop]] | None = None) -> Sides:
    told = [] if stops is None else stops

    def on_stop(_model: str, side: str, stop: Stop) -> None:
        told.append((side, stop))

    return Sides(model="m", split=split, rng=random.Random(1), on_stop=on_stop)


@pytest.mark.parametrize("sticky", [False, True])
def test_calls_are_shared_by_weight(sticky: bool) -> None:
    split = sides(Split(weights={"a": 9, "b": 90, "c": 1, "off": 0}, old="a"))
    found = Counter(split.choose(caller if sticky else "") for caller in CALLERS)
    assert set(found) == {"a", "b", "c"}
    assert found["a"] / len(CALLERS) == pytest.approx(0.09, abs=0.02)
    assert found["b"] / len(CALLERS) == pytest.approx(0.90, abs=0.02)


def test_a_caller_keeps_to_its_side_in_every_process_and_across_a_flood_of_others() -> None:
    one, other = (sides(Split(weights={"a": 1, "b": 1}, old="a")) for _ in range(2))
    homes = {caller: one.choose(caller) for caller in CALLERS}
    for number in range(MAX_CALLERS + 1):
        one.choose(f"stranger-{number}")
    assert homes == {caller: one.choose(caller) for caller in CALLERS}
    assert homes == {caller: other.choose(caller) for caller in reversed(CALLERS)}


def test_another_route_has_other_callers_on_its_canary() -> None:
    shares = {"a": 90, "b": 10}
    here = {caller for caller in CALLERS if side_of(caller, "m", shares) == "b"}
    there = {caller for caller in CALLERS if side_of(caller, "n", shares) == "b"}
    assert len(here & there) < len(here) / 3


@given(st.text(max_size=20), weights, st.integers(1, 1000), st.integers(0, 1000))
def test_a_share_that_grows_only_wins_callers(caller: str, old: int, new: int, more: int) -> None:
    before = side_of(caller, "m", {"old": old, "new": new})
    after = side_of(caller, "m", {"old": max(0, old - more), "new": new + more})
    assert after == "new" or (before, after) == ("old", "old")


@given(
    st.text(max_size=20),
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 99), min_size=2),
    st.data(),
)
def test_of_many_sides_one_that_grows_only_wins_callers(
    caller: str, shares: dict[str, int], data: st.DataObject
) -> None:
    grows = data.draw(st.sampled_from(sorted(shares)))
    before = side_of(caller, "m", shares)
    after = side_of(caller, "m", {**shares, grows: shares[grows] + data.draw(st.integers(1, 99))})
    assert after in (before, grows)


def test_from_10_to_50_keeps_the_first_tenth() -> None:
    steps = [
        {
            caller
            for caller in CALLERS
            if side_of(caller, "m", {"old": 100 - new, "new": new}) == "new"
        }
        for new in (10, 50, 100)
    ]
    assert steps[0] < steps[1] < steps[2] == set(CALLERS)
    assert len(steps[0]) / len(CALLERS) == pytest.approx(0.1, abs=0.02)


def test_a_stopped_side_gets_no_more_calls_and_its_callers_go_to_the_others() -> None:
    stops: list[tuple[str, Stop]] = []
    split = sides(
        Split(weights={"a": 1, "b": 1}, old="a", guard=Guard(errors=0.02, after=10)), stops
    )
    callers = {caller: split.choose(caller) for caller in CALLERS}
    assert set(callers.values()) == {"a", "b"}
    for _ in range(10):
        split.ended("a", well=True)
        split.ended("b", well=False)
    assert [(side, stop.reason) for side, stop in stops] == [("b", "errors")]
    assert split.shares() == {"a": 1.0, "b": 0.0}
    assert split.home() == "a"
    assert {split.choose(caller) for caller in CALLERS} == {"a"}
    assert {split.choose("") for _ in range(100)} == {"a"}


def test_a_guard_in_shadow_tells_and_stops_nothing() -> None:
    stops: list[tuple[str, Stop]] = []
    guard = Guard(errors=0.02, after=10, shadow=True)
    split = sides(Split(weights={"a": 1, "b": 1}, old="a", guard=guard), stops)
    for _ in range(20):
        split.ended("a", well=True)
        split.ended("b", well=False)
    assert [(side, stop.shadow) for side, stop in stops] == [("b", True)]
    assert split.shares() == {"a": 0.5, "b": 0.5}
    assert {split.choose("") for _ in range(100)} == {"a", "b"}


def routed(split: Split, *, previous: Course | None = None) -> Course:
    before = {} if previous is None else {"m": previous}
    return courses({"m": Policy(split=split)}, nobody_told, previous=before)["m"]


def test_a_split_that_did_not_change_keeps_what_is_known_of_its_sides() -> None:
    guard = Guard(errors=0.02, after=10)
    before = routed(Split(weights={"a": 90, "b": 10}, old="a", guard=guard))
    same = routed(Split(weights={"a": 90, "b": 10}, old="a", guard=guard), previous=before)
    assert same.sides is before.sides
    for weights, old in (({"a": 50, "b": 50}, "a"), ({"a": 90, "b": 10}, "b")):
        changed = routed(Split(weights=weights, old=old, guard=guard), previous=before)
        assert changed.sides is not before.sides


@pytest.mark.parametrize("caller", ["", "tenant"])
def test_a_choice_costs_a_microsecond_at_most_where_nothing_else_runs(caller: str) -> None:
    """Told with room to spare: machines that run tests are busy."""
    split = sides(Split(weights={"a": 90, "b": 10}, old="a"))
    took_s = min(timeit.repeat(lambda: split.choose(caller), number=1000, repeat=20)) / 1000
    assert took_s < 5e-6
