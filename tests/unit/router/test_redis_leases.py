"""Leases: most calls ask nobody, and no more passes than was taken."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.limits.buckets import Standing, Verdict
from aiflow_router.limits.redis.leases import Decided, Lease, Leases, pause_s, wanted
from aiflow_router.limits.rule import Ask, Rule


def rule(name: str = "r", **fields: Any) -> Rule:
    return Rule(name=name, **{"amount": 100.0, "burst": 100.0, "lease_s": 1.0, **fields})


def ask(of: Rule | None = None, cost: float = 1.0, *, bucket: str = "") -> Ask:
    of = of or rule()
    return Ask(rule=of, bucket=bucket or of.name, cost=cost)


class Redis:
    """One bucket as the script has it, on a clock that a test moves."""

    def __init__(self, level: float = 100.0, *, rate: float = 100.0) -> None:
        self.now_s = 0.0
        self.level = self.burst = level
        self.rate = rate
        self.asked: list[list[float]] = []
        self.taken: list[tuple[float, float]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    def passes(self, time_s: float) -> None:
        self.now_s += time_s
        self.level = min(self.burst, self.level + self.rate * time_s)

    async def decide(self, asks: Sequence[Ask], wants: Sequence[float]) -> Decided:
        self.asked.append([item.cost for item in asks])
        await self.answers.wait()
        standings, leased, granted = [], [], True
        for item, want in zip(asks, wants, strict=True):
            short = item.cost > self.level
            granted = granted and not (short and item.rule.mode == "enforce")
            wait_s = (item.cost - self.level) / self.rate if short else 0.0
            leased.append(max(0.0, min(want, (self.level - item.cost) / 2)))
            standings.append(Standing(remaining=self.level, wait_s=wait_s, reset_s=0.0))
        if granted:
            for item, got in zip(asks, leased, strict=True):
                self.level -= item.cost + got
                self.taken.append((self.now_s, item.cost + got))
        return Decided(
            verdict=Verdict(granted=granted, standings=tuple(standings), by="redis"),
            leased=tuple(leased if granted else [0.0] * len(leased)),
        )

    def leases(self) -> Leases:
        return Leases(lambda: self.now_s, lambda: 0.5)


async def test_most_calls_ask_nobody() -> None:
    redis = Redis(level=1e6, rate=1e6)
    leases = redis.leases()
    of = rule(amount=1e6, burst=1e6)
    by = [(await leases.take([ask(of)], redis.decide)).by for _ in range(1000)]
    assert by.count("redis") == len(redis.asked) < 12
    assert by.count("lease") == 1000 - len(redis.asked)


async def test_who_comes_while_a_question_is_on_its_way_waits_for_its_answer() -> None:
    redis = Redis()
    leases = redis.leases()
    redis.answers.clear()
    calls = [asyncio.create_task(leases.take([ask()], redis.decide)) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(redis.asked) == 1
    redis.answers.set()
    assert all(verdict.granted for verdict in await asyncio.gather(*calls))
    assert len(redis.asked) == 1


async def test_a_lease_that_is_not_spent_is_lost() -> None:
    redis = Redis()
    leases = redis.leases()
    await leases.take([ask()], redis.decide)
    redis.passes(1.0)
    assert (await leases.take([ask()], redis.decide)).by == "redis"
    redis.passes(5.0)
    leases.sweep()
    assert len(leases) == 0


async def test_a_dry_bucket_is_not_asked_again_at_once() -> None:
    redis = Redis(level=1.0)
    leases = redis.leases()
    of = rule(burst=10)
    assert (await leases.take([ask(of)], redis.decide)).granted
    refusals = [await leases.take([ask(of)], redis.decide) for _ in range(10)]
    assert not any(refusal.granted for refusal in refusals)
    assert len(redis.asked) == 2
    assert refusals[-1].standings[0].wait_s == pytest.approx(0.05)
    assert (await leases.take([ask(of, 0.0)], redis.decide)).granted, "it asks for less"
    redis.burst = 10.0
    redis.passes(0.05)
    assert (await leases.take([ask(of)], redis.decide)).granted


async def test_what_a_refused_call_had_from_leases_goes_back() -> None:
    redis = Redis()
    leases = redis.leases()
    full, dry = rule("full"), Rule(name="dry", amount=1.0, burst=1.0)
    assert (await leases.take([ask(full)], redis.decide)).granted
    redis.level = 0.0
    assert not (await leases.take([ask(full), ask(dry)], redis.decide)).granted
    left = [await leases.take([ask(full)], redis.decide) for _ in range(4)]
    assert [verdict.by for verdict in left] == ["lease"] * 4


async def test_a_call_that_is_cancelled_while_it_asks_frees_the_others() -> None:
    redis = Redis()
    leases = redis.leases()
    redis.answers.clear()
    first, second = (asyncio.create_task(leases.take([ask()], redis.decide)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    redis.answers.set()
    assert (await second).granted


async def test_exact_rules_are_asked_for_each_call_and_leased_ones_pay_beside() -> None:
    redis = Redis()
    leases = redis.leases()
    both = [ask(rule("leased")), ask(Rule(name="exact", amount=100.0, burst=100.0))]
    for _ in range(4):
        assert (await leases.take(both, redis.decide)).granted
    assert [len(costs) for costs in redis.asked] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("true", "settled", "left"),
    [
        pytest.param(0.0, True, 5.0, id="what was not used goes back to the lease"),
        pytest.param(3.0, True, 2.0, id="what was used beyond is taken from it"),
        pytest.param(99.0, False, 4.0, id="more than it has is Redis's to charge"),
    ],
)
async def test_the_true_cost(true: float, settled: bool, left: float) -> None:
    redis = Redis()
    leases = redis.leases()
    await leases.take([ask()], redis.decide)
    assert leases.settle(ask(), true) == settled
    redis.level = 0.0
    assert (await leases.take([ask(cost=left)], redis.decide)).by == "lease"
    assert (await leases.take([ask(cost=0.1)], redis.decide)).by == "redis"


async def test_a_lease_that_is_over_settles_nothing() -> None:
    redis = Redis()
    leases = redis.leases()
    await leases.take([ask()], redis.decide)
    redis.passes(1.0)
    assert not leases.settle(ask(), 0.0)


@pytest.mark.parametrize(
    ("lease", "now_s", "expected"),
    [
        pytest.param(Lease(), 0.0, 4.0, id="the first is for a few calls"),
        pytest.param(
            Lease(wanted=4.0, asked_s=0.0, spent=4.0), 0.01, 100.0, id="by how fast it was spent"
        ),
        pytest.param(
            Lease(wanted=30.0, asked_s=0.0, spent=30.0), 0.9, 60.0, id="twice as much, if too early"
        ),
        pytest.param(
            Lease(wanted=50.0, asked_s=0.0, spent=20.0), 2.0, 10.0, id="less, if less is needed"
        ),
        pytest.param(
            Lease(wanted=100.0, asked_s=0.0, spent=100.0), 0.1, 100.0, id="never above the rate"
        ),
    ],
)
def test_what_is_wanted(lease: Lease, now_s: float, expected: float) -> None:
    assert wanted(lease, ask(), now_s) == pytest.approx(expected)


def test_a_bucket_left_alone_does_not_run_over() -> None:
    assert pause_s(rule(burst=10), 0.5) == pytest.approx(0.05)
    assert pause_s(rule(burst=1000), 0.5) == pytest.approx(0.5)
    assert pause_s(rule(burst=10), 1.0) < 0.1


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 0.4)), max_size=200))
async def test_no_more_passes_in_any_time_than_was_taken_a_lease_before(
    calls: list[tuple[float, float]],
) -> None:
    redis = Redis(level=20.0, rate=10.0)
    leases = redis.leases()
    of = rule(amount=10.0, burst=20.0, lease_s=0.5)
    passed: list[tuple[float, float]] = []
    for cost, time_s in calls:
        if (await leases.take([ask(of, cost)], redis.decide)).granted:
            passed.append((redis.now_s, cost))
        redis.passes(time_s)
    for first in range(len(passed)):
        total = 0.0
        for at_s, cost in passed[first:]:
            total += cost
            assert total <= 20 + 10 * (at_s - passed[first][0] + 0.5) + 1e-6


@pytest.mark.parametrize("asked", [0.9, 1.1, 3.0, 20.0], ids=lambda times: f"{times} of the rate")
async def test_routers_that_share_a_bucket_ask_little_and_have_even_shares(asked: float) -> None:
    redis = Redis(level=60.0, rate=120.0)
    of = rule(amount=120.0, burst=60.0)
    routers = [Leases(lambda: redis.now_s, random.Random(seed).random) for seed in range(4)]
    granted = [0] * 4
    calls = int(asked * 120 * 20)
    for number in range(calls):
        one = number % 4
        granted[one] += (await routers[one].take([ask(of)], redis.decide)).granted
        redis.passes(1 / (asked * 120))
    assert len(redis.asked) <= 0.1 * calls
    assert sum(granted) >= 0.97 * min(calls, 60 + 120 * 20)
    assert max(granted) <= 1.35 * min(granted)
