"""Round robin: in turn by weight, smoothly, and undisturbed by who joins or leaves."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import Asking, follow, load, pick


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param([1], "aaa", id="one endpoint gets every call"),
        pytest.param([1, 1, 1], "abcabc", id="equals take turns"),
        pytest.param([5, 1, 1], "aabacaaaabacaa", id="a heavy one is spread over the round"),
    ],
)
def test_turns(weights: list[int], expected: str) -> None:
    loads = [load(port, weight=weight) for port, weight in enumerate(weights)]
    asking = Asking()
    follow(asking.memory, loads)
    picked = [pick("round_robin", loads, asking=asking) for _ in expected]
    assert "".join("abc"[loads.index(item)] for item in picked) == expected


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_each_round_gives_exactly_the_weights(weights: list[int]) -> None:
    loads = [load(port, weight=weight) for port, weight in enumerate(weights)]
    asking = Asking()
    for _ in range(3):
        counts = Counter(
            loads.index(pick("round_robin", loads, asking=asking)) for _ in range(sum(weights))
        )
        assert [counts[n] for n in range(len(loads))] == weights


def test_a_new_snapshot_does_not_start_the_turns_anew() -> None:
    loads, asking = [load(1), load(2), load(3)], Asking()
    picked = []
    for _ in range(6):
        follow(asking.memory, loads)
        picked.append(loads.index(pick("round_robin", loads, asking=asking)))
    assert picked == [0, 1, 2, 0, 1, 2]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(1, 200))
def test_after_many_have_left_in_debt_a_new_one_neither_starves_nor_gets_a_burst(
    weights: list[int], changes: int
) -> None:
    loads = [load(port, weight=weight) for port, weight in enumerate(weights)]
    asking = Asking()
    follow(asking.memory, loads)
    for number in range(changes):  # Who has just been picked, and paid, leaves.
        loads.remove(pick("round_robin", loads, asking=asking))
        loads.append(load(100 + number))
        follow(asking.memory, loads)
    total = sum(item.endpoint.weight for item in loads)
    counts = Counter(id(pick("round_robin", loads, asking=asking)) for _ in range(4 * total))
    for item in loads:
        assert abs(counts[id(item)] - 4 * item.endpoint.weight) <= 2 * max(weights)


def test_who_left_is_forgotten() -> None:
    loads, asking = [load(1), load(2)], Asking()
    pick("round_robin", loads, asking=asking)
    follow(asking.memory, loads[:1])
    assert set(asking.memory.turns) == set(loads[:1])
