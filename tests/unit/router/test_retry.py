"""Retries: how long they wait and how many there may be at once."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.forwarding.retry import BASE_BACKOFF_S, MAX_BACKOFF_S, Budget, backoff_s


@pytest.mark.parametrize(
    ("active", "may"),
    [
        pytest.param(1, 3, id="a few may always"),
        pytest.param(15, 3, id="the share is below the floor"),
        pytest.param(100, 20, id="a fifth of a hundred"),
        pytest.param(102, 21, id="the share is rounded up, as Envoy's is"),
    ],
)
def test_as_many_may_retry_at_once_as_the_budget_says(active: int, may: int) -> None:
    budget = Budget(active=active)
    assert [budget.take() for _ in range(may + 1)] == [True] * may + [False]
    budget.give_back()
    assert budget.take()


def test_without_a_budget_nothing_is_retried() -> None:
    assert not Budget(share=0.0, floor=0, active=1000).take()


@given(retry=st.integers(1, 200), seed=st.integers())
def test_pauses_are_bounded_and_start_short(retry: int, seed: int) -> None:
    pause_s = backoff_s(retry, random.Random(seed))
    assert 0 <= pause_s <= min(BASE_BACKOFF_S * 2.0 ** (retry - 1), MAX_BACKOFF_S)


def test_pauses_are_spread_over_their_whole_range() -> None:
    rng = random.Random(1)
    pauses_s = [backoff_s(1, rng) for _ in range(1000)]
    assert min(pauses_s) < 0.1 * BASE_BACKOFF_S
    assert max(pauses_s) > 0.9 * BASE_BACKOFF_S
