"""Peak EWMA: slower is believed at once, faster in time; failures are slow; all get a chance."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import Asking, follow, load, pick

from aiflow_router.balancing.answer_time import DECAY_S, AnswerTime, observed

TENTH = AnswerTime(average_s=0.1, at_s=100.0)


@pytest.mark.parametrize(
    ("known", "outcome", "took_s", "after_s", "expected_s"),
    [
        pytest.param(None, "OK", 0.1, 0, 0.1, id="the first answer is believed"),
        pytest.param(TENTH, "OK", 0.9, 0, 0.9, id="a slower answer is believed at once"),
        pytest.param(TENTH, "OK", 0.0, DECAY_S, 0.0368, id="a faster one as old knowledge fades"),
        pytest.param(TENTH, "OK", 0.0, 0, 0.1, id="a faster one changes nothing at once"),
        pytest.param(None, "UNAVAILABLE", 0.0, 0, 1.0, id="failing fast is slow"),
        pytest.param(AnswerTime(average_s=5, at_s=100), "INTERNAL", 0.0, 0, 10, id="and slower"),
        pytest.param(AnswerTime(average_s=55, at_s=100), "INTERNAL", 0, 0, 60, id="up to a minute"),
        pytest.param(TENTH, "CANCELLED", 0.01, 9, 0.1, id="giving up early says nothing"),
        pytest.param(
            TENTH, "CANCELLED", 7.0, 9, 7.0, id="giving up late says: no faster than this"
        ),
        pytest.param(TENTH, "INVALID_ARGUMENT", 0.0, 9, 0.1, id="refusing bad input is not fast"),
    ],
)
def test_what_is_known_after_an_attempt(
    known: AnswerTime | None, outcome: str, took_s: float, after_s: float, expected_s: float
) -> None:
    found = observed(known, outcome=outcome, took_s=took_s, now_s=100.0 + after_s)
    assert found is not None
    assert found.average_s == pytest.approx(expected_s, rel=0.01)


def test_a_cancelled_call_does_not_measure_a_new_endpoint() -> None:
    assert observed(None, outcome="CANCELLED", took_s=0.001, now_s=1.0) is None


@given(
    st.lists(st.tuples(st.sampled_from(["OK", "INTERNAL", "CANCELLED"]), st.floats(0, 100))),
    st.floats(0, 1e6),
)
def test_it_stays_between_nothing_and_the_worst(
    seen: list[tuple[str, float]], now_s: float
) -> None:
    known = None
    for outcome, took_s in seen:
        known = observed(known, outcome=outcome, took_s=took_s, now_s=now_s)
        now_s += took_s
        if known is not None:
            assert 0 <= known.now(now_s) <= known.average_s <= 100


def test_a_new_endpoint_gets_one_call_a_second_until_it_is_measured() -> None:
    loads, asking, rng = [load(1), load(2)], Asking(), random.Random(1)
    asking.memory.times[loads[0]] = AnswerTime(average_s=0.1, at_s=0.0)
    for second in range(3):
        picked = Counter(
            pick("peak_ewma", loads, rng, asking=asking, now_s=second + n / 100).endpoint.address
            for n in range(100)
        )
        assert picked == {"h:1": 99, "h:2": 1}
    asking.memory.answered(loads[1], outcome="OK", took_s=0.01, now_s=3.0)
    assert all(pick("peak_ewma", loads, rng, asking=asking, now_s=3.0) is loads[1] for _ in "1234")


def test_a_slow_endpoint_gets_its_chance_again() -> None:
    loads, asking, rng, now_s = [load(1), load(2)], Asking(), random.Random(1), 0.0
    asking.memory.answered(loads[0], outcome="INTERNAL", took_s=0.0, now_s=now_s)
    while True:
        now_s += 0.1
        if pick("peak_ewma", loads, rng, asking=asking, now_s=now_s) is loads[0]:
            break
        asking.memory.answered(loads[1], outcome="OK", took_s=0.02, now_s=now_s)
    assert 20 < now_s < 60


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (2, 5)])
def test_of_equally_fast_ones_weights_share_the_calls(weights: tuple[int, int]) -> None:
    loads, asking, rng = (
        [load(n, weight=w) for n, w in enumerate(weights)],
        Asking(),
        random.Random(1),
    )
    for item in loads:
        asking.memory.times[item] = TENTH
    for _ in range(400):
        pick("peak_ewma", loads, rng, asking=asking, now_s=100.0).inflight += 1
    assert loads[0].inflight == pytest.approx(400 * weights[0] / sum(weights), rel=0.05)


def test_who_left_is_forgotten() -> None:
    loads, asking = [load(1), load(2)], Asking()
    for item in loads:
        asking.memory.answered(item, outcome="OK", took_s=0.1, now_s=0.0)
        asking.memory.chances[item] = 0.0
    follow(asking.memory, loads[:1])
    assert set(asking.memory.times) == set(asking.memory.chances) == set(loads[:1])
