"""Session: one endpoint a session, shares by weight, and few move when endpoints come and go."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import Asking, load, opened, pick

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.session import MAX_HOMES, MAX_NAME

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=8)
NAMES = st.lists(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), min_size=1
)


def home(loads: Sequence[Load], name: str) -> Load:
    return pick("session", loads, asking=Asking(session=name))


def fleet(weights: list[int]) -> list[Load]:
    return [load(port, weight=weight) for port, weight in enumerate(weights)]


@given(WEIGHTS, st.integers(1, 20), NAMES)
def test_who_joins_takes_its_share_and_no_other_session_moves(
    weights: list[int], weight: int, names: list[str]
) -> None:
    loads, new = fleet(weights), load(100, weight=weight)
    for name in names:
        assert home([*loads, new], name) in (home(loads, name), new)


@given(WEIGHTS, NAMES)
def test_a_session_returns_with_its_endpoint_and_the_order_does_not_matter(
    weights: list[int], names: list[str]
) -> None:
    loads = fleet([*weights, 1])
    for name in names:
        first = home(loads, name)
        first.cool_until_s = 5.0
        instead = home(opened(loads, now_s=1.0), name)
        assert instead is not first
        assert instead is home(opened(loads, now_s=1.0), name)
        assert home(opened(loads[::-1], now_s=6.0), name) is first
        assert home(opened(loads, now_s=6.0, tried=[first]), name) is instead
        first.cool_until_s = 0.0


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([1, 1, 1], id="equals get as many sessions"),
        pytest.param([1, 3], id="three times the weight, three times the sessions"),
        pytest.param([1, 2, 5, 10], id="any mixture"),
    ],
)
def test_weights_share_the_sessions(weights: list[int]) -> None:
    loads = fleet(weights)
    counts = Counter(id(home(loads, f"session-{n}")) for n in range(6000))
    for item in loads:
        share = 6000 * item.endpoint.weight / sum(weights)
        assert counts[id(item)] == pytest.approx(share, rel=0.15)


def test_every_router_comes_to_the_same_answer() -> None:
    """A change of the hash would move every session at once."""
    homes = [home(fleet([1, 1, 2]), f"session-{n}").endpoint.address[-1] for n in range(6)]
    assert "".join(homes) == "210002"


def test_without_a_session_the_least_busy_is_picked() -> None:
    loads = [load(1, inflight=2), load(2), load(3, inflight=1)]
    assert home(loads, "") is loads[1]


@given(WEIGHTS, NAMES)
def test_remembering_homes_changes_no_answer(weights: list[int], names: list[str]) -> None:
    loads, asking = tuple(fleet(weights)), Asking()
    for now in (loads, loads[1:], loads) if len(loads) > 1 else (loads,):
        for name in names * 2:
            asking.session = name
            assert pick("session", now, asking=asking) is home(now, name)
            assert pick("session", [*now], asking=asking) is home(now, name)


def test_homes_that_are_remembered_are_bounded() -> None:
    loads, asking = tuple(fleet([1, 1])), Asking()
    for number in range(3 * MAX_HOMES):
        asking.session = f"s{number}"
        pick("session", loads, asking=asking)
    asking.session = "s" * (MAX_NAME + 1)
    pick("session", loads, asking=asking)
    assert len(asking.memory.homes) <= MAX_HOMES
    assert asking.session not in asking.memory.homes
