"""Picking: the least busy for its weight, every endpoint in the end, none that cools off."""

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import Asking, load, opened, pick

from aiflow_router.balancing.load import MAX_COOL_OFF_S
from aiflow_router.balancing.pick import PICKS
from aiflow_router.config.route import Balance


@given(st.lists(st.integers(0, 50), min_size=1, max_size=3), st.integers())
def test_of_few_the_least_busy_is_picked(busy: list[int], seed: int) -> None:
    loads = [load(port, inflight=count) for port, count in enumerate(busy)]
    assert pick("least_request", loads, random.Random(seed)).inflight == min(busy)


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_every_endpoint_is_picked(count: int, seed: int) -> None:
    loads = [load(port) for port in range(count)]
    rng = random.Random(seed)
    picked = Counter(id(pick("least_request", loads, rng)) for _ in range(100 * count))
    assert len(picked) == count
    assert max(picked.values()) < 100 * 2.5


def test_of_many_the_busiest_is_never_picked() -> None:
    loads = [load(port) for port in range(9)] + [load(9, inflight=100)]
    rng = random.Random(1)
    assert all(pick("least_request", loads, rng).inflight == 0 for _ in range(500))


def test_weights_share_the_calls() -> None:
    loads = [load(1, weight=1), load(2, weight=3)]
    rng = random.Random(1)
    for _ in range(400):
        pick("least_request", loads, rng).inflight += 1
    assert 90 <= loads[0].inflight <= 110


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6),
)
def test_open_are_the_untried_and_warm_but_never_none_while_one_is_untried(
    flags: list[tuple[bool, bool]],
) -> None:
    loads = [load(n, cool_until_s=5.0 if cools else 0.0) for n, (cools, _) in enumerate(flags)]
    tried = [item for item, (_, used) in zip(loads, flags, strict=True) if used]
    found = opened(loads, now_s=1.0, tried=tried)
    assert not set(map(id, found)) & set(map(id, tried))
    assert bool(found) == (len(tried) < len(loads))
    if any(not used and not cools for cools, used in flags):
        assert all(item.cool_until_s <= 1.0 for item in found)


def test_the_cool_off_doubles_up_to_its_limit_and_counts_a_burst_once() -> None:
    item, now_s, waits = load(1), 100.0, []
    for _ in range(6):
        item.refused(now_s=now_s)
        item.refused(now_s=now_s)
        waits.append(item.cool_until_s - now_s)
        now_s = item.cool_until_s
    assert waits == [1, 2, 4, 8, MAX_COOL_OFF_S, MAX_COOL_OFF_S]
    item.connected()
    item.refused(now_s=now_s)
    assert item.cool_until_s == now_s + 1


def test_every_strategy_can_be_configured_and_every_configured_one_exists() -> None:
    assert set(get_args(Balance)) == set(PICKS)


@pytest.mark.parametrize("name", PICKS)
@given(flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_no_strategy_picks_a_tried_or_cooling_one_while_another_is_free(
    name: str, flags: list[tuple[bool, bool]]
) -> None:
    loads = [load(n, cool_until_s=5.0 if cools else 0.0) for n, (cools, _) in enumerate(flags)]
    tried = [item for item, (_, used) in zip(loads, flags, strict=True) if used]
    free = [item for item in loads if item not in tried and item.cool_until_s <= 1.0]
    asking, rng = Asking(), random.Random(1)
    for number in range(20):
        found = opened(loads, now_s=1.0, tried=tried)
        if found:
            asking.session = str(number)
            assert pick(name, found, rng, asking=asking, now_s=1.0) in (free or found)


@pytest.mark.parametrize("name", PICKS)
@given(weights=st.lists(st.integers(1, 10), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_every_strategy_picks_every_endpoint(name: str, weights: list[int], seed: int) -> None:
    loads = [load(port, weight=weight) for port, weight in enumerate(weights)]
    asking, rng, picked = Asking(), random.Random(seed), Counter[str]()
    for number in range(3000):
        asking.session = f"{seed}-{number}"
        chosen = pick(name, loads, rng, asking=asking)
        chosen.inflight += 1
        picked[chosen.endpoint.address] += 1
        if set(picked) == {item.endpoint.address for item in loads}:
            return
    raise AssertionError(f"only {picked} of {weights}")
