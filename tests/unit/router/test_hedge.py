"""Hedging: when an answer takes long, by a fixed time or by the model's own past."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.forwarding.hedge import GROWTH, MAX_SAMPLES, MIN_SAMPLES, AnswerTimes, Hedge


def test_a_fixed_delay_needs_no_past() -> None:
    assert Hedge(after_s=0.15).delay_s() == 0.15


def test_nothing_is_long_while_nothing_is_known() -> None:
    hedge = Hedge(after_s=None)
    for _ in range(MIN_SAMPLES - 1):
        hedge.answered(0.1)
        assert hedge.delay_s() is None
    hedge.answered(0.1)
    assert hedge.delay_s() is not None


@given(st.lists(st.floats(0.0002, 400), min_size=1, max_size=300), st.floats(0.01, 1))
def test_a_quantile_is_at_most_a_bucket_above_the_true_one(took: list[float], share: float) -> None:
    times = AnswerTimes()
    for took_s in took:
        times.add(took_s)
    estimate_s = times.quantile_s(share)
    within = sum(took_s <= estimate_s * 1.0001 for took_s in took)
    below = sum(took_s < estimate_s / GROWTH / 1.0001 for took_s in took)
    assert within >= share * len(took) - 1e-6
    assert below <= share * len(took)


@pytest.mark.parametrize("took_s", [0.0, 1e-9, 1e6])
def test_times_beyond_the_buckets_count_in_the_outermost(took_s: float) -> None:
    times = AnswerTimes()
    times.add(took_s)
    assert times.quantile_s(1.0) > 0


def test_a_model_that_gets_faster_is_believed_after_a_while() -> None:
    rng = random.Random(1)
    hedge = Hedge(after_s=None)
    for _ in range(MAX_SAMPLES):
        hedge.answered(rng.uniform(0.9, 1.0))
    for _ in range(10 * MAX_SAMPLES):
        hedge.answered(rng.uniform(0.09, 0.1))
    delay_s = hedge.delay_s()
    assert delay_s is not None
    assert 0.09 < delay_s < 0.12
