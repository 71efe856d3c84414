"""Buckets in this process and in Redis decide the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from contract.buckets.kit import InMemory, InRedis, World, ask, granted, redis_buckets, rule, taken
from fixtures.redis import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_router.limits.buckets import NEVER_S
from aiflow_router.limits.rule import Rule


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield InMemory()
        return
    server: Server = request.getfixturevalue("redis_server")
    async with redis_buckets(server) as buckets:
        yield InRedis(buckets)


# What is asked of one rule: a number asks for so much, a string lets so many seconds pass.
@pytest.mark.parametrize(
    ("of", "asked", "expected"),
    [
        pytest.param(
            rule(amount=0.01), [1, 1, 1, 1], "gggr", id="a full bucket grants its burst at once"
        ),
        pytest.param(rule(amount=2), [3, 1, "0.6", 1], "grg", id="what comes in can be had again"),
        pytest.param(
            rule(amount=4), [3, "1.6", 2, 1, 1], "gggr", id="it never holds more than its burst"
        ),
        pytest.param(rule(), [4, 3], "rg", id="what is refused is not charged"),
        pytest.param(rule(amount=0.01), [2.5, 1, 0.5], "grg", id="costs need not be whole"),
        pytest.param(rule(), [3, 0, 0], "ggg", id="what costs nothing is always there"),
        pytest.param(
            rule(kind="strict", amount=2, period_s=1.5),
            [1, "0.5", 1, 1, "1.25", 1, 1],
            "ggrgr",
            id="strict: a call counts until it is a period old, whatever came after it",
        ),
        pytest.param(
            rule(kind="concurrency", amount=2), [1, 1, 1], "ggr", id="so many calls at a time"
        ),
        pytest.param(rule(kind="day", amount=3), [1, 2, 1], "ggr", id="a quota is used up"),
        pytest.param(rule(kind="month", amount=3), [2, 2, 1], "grg", id="what is left can be had"),
        pytest.param(
            rule(mode="shadow"), [1, 1, 1, 1, 1], "ggggg", id="a rule in shadow refuses nobody"
        ),
    ],
)
async def test_what_is_granted(
    world: World, of: Rule, asked: list[float | str], expected: str
) -> None:
    got = ""
    for item in asked:
        if isinstance(item, str):
            await world.passes(float(item))
        else:
            got += "g" if await granted(world.buckets, ask(of, item)) else "r"
    assert got == expected


async def test_all_are_charged_or_none_is(world: World) -> None:
    wide, narrow = rule("wide", amount=0.01), rule("narrow", amount=0.01, burst=1)
    assert await granted(world.buckets, ask(wide), ask(narrow))
    refused = await taken(world.buckets, ask(wide), ask(narrow))
    assert not refused.granted
    assert [standing.remaining for standing in refused.standings] == pytest.approx([2, 0], abs=0.1)
    assert refused.standings[0].wait_s == 0
    assert refused.standings[1].wait_s == pytest.approx(100, rel=0.1)


async def test_a_rule_in_shadow_is_charged_where_it_can_be(world: World) -> None:
    real, shadow = rule("real", burst=9), rule("shadow", amount=0.01, burst=1, mode="shadow")
    first = await taken(world.buckets, ask(real), ask(shadow))
    second = await taken(world.buckets, ask(real), ask(shadow))
    assert [first.granted, second.granted] == [True, True]
    assert [first.standings[1].wait_s, second.standings[1].wait_s > 0] == [0, True]
    assert second.standings[1].remaining == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("of", "cost", "expected_s"),
    [
        pytest.param(rule(amount=0.5), 1, 2, id="until enough has come in"),
        pytest.param(rule(burst=3), 4, NEVER_S, id="never, where the bucket holds less"),
        pytest.param(
            rule(kind="strict", amount=3, period_s=10), 1, 10, id="until enough is a period old"
        ),
        pytest.param(rule(kind="strict", amount=3), 4, NEVER_S, id="never more than a strict rule"),
        pytest.param(rule(kind="day", amount=3), 1, NEVER_S, id="nobody waits for tomorrow"),
    ],
)
async def test_the_wait(world: World, of: Rule, cost: float, expected_s: float) -> None:
    began_s = world.now_s()
    for _ in range(3):
        assert await granted(world.buckets, ask(of))
    wait_s = (await taken(world.buckets, ask(of, cost))).standings[0].wait_s
    passed_s = world.now_s() - began_s
    assert expected_s - passed_s - 1e-3 <= wait_s <= expected_s + 1e-3


async def test_when_the_wait_is_over_it_is_granted(world: World) -> None:
    assert await granted(world.buckets, ask(rule(), 3))
    wait_s = (await taken(world.buckets, ask(rule(), 2))).standings[0].wait_s
    await world.passes(wait_s)
    assert await granted(world.buckets, ask(rule(), 2))


async def test_a_place_is_free_when_its_call_ends(world: World) -> None:
    one = ask(rule(kind="concurrency", amount=1))
    assert await granted(world.buckets, one, holder="first")
    waiting = await taken(world.buckets, one, holder="second")
    assert not waiting.granted
    assert 0 < waiting.standings[0].wait_s < NEVER_S
    world.buckets.settle([one], [1.0], holder="second")
    assert not await granted(world.buckets, one, holder="third"), "a place was left by a stranger"
    world.buckets.settle([one], [1.0], holder="first")
    assert await granted(world.buckets, one, holder="third")


@pytest.mark.parametrize(
    ("of", "true", "then"),
    [
        pytest.param(rule(amount=0.01), 1, 2, id="what was not used goes back"),
        pytest.param(rule(amount=0.01), 0, 3, id="all of it, where the call went nowhere"),
        pytest.param(rule(amount=0.01), 3, 0, id="what was used beyond is charged"),
        pytest.param(rule(kind="day", amount=3), 1, 2, id="a quota too"),
        pytest.param(rule(kind="strict", amount=3, period_s=9), 0, 3, id="a log forgets it"),
    ],
)
async def test_the_true_cost(world: World, of: Rule, true: float, then: float) -> None:
    one = ask(of, 2)
    assert await granted(world.buckets, one, holder="it")
    world.buckets.settle([one], [true], holder="it")
    verdict = await world.buckets.look([ask(of, 1)])
    assert verdict.standings[0].remaining == pytest.approx(then, abs=0.1)
    assert verdict.granted == (then >= 1)


async def test_who_asked_for_nothing_is_charged_what_it_took(world: World) -> None:
    one = ask(rule(amount=0.01), 0)
    assert await granted(world.buckets, one, holder="it")
    world.buckets.settle([one], [2.0], holder="it")
    found = await world.buckets.look([one])
    assert found.standings[0].remaining == pytest.approx(1, abs=0.1)


async def test_a_debt_is_paid_before_anything_is_granted(world: World) -> None:
    slow = rule(amount=0.5)
    one = ask(slow, 3)
    began_s = world.now_s()
    assert await granted(world.buckets, one, holder="it")
    world.buckets.settle([one], [5.0], holder="it")
    found = await world.buckets.look([ask(slow, 1)])
    passed_s = world.now_s() - began_s
    assert found.standings[0].remaining == 0
    assert 6 - passed_s - 1e-3 <= found.standings[0].wait_s <= 6 + 1e-3


async def test_to_look_takes_nothing(world: World) -> None:
    asks = [
        ask(rule("a", amount=0.01)),
        ask(rule("b", kind="strict", amount=3)),
        ask(rule("c", kind="concurrency", amount=3)),
        ask(rule("d", kind="month", amount=3)),
    ]
    for _ in range(2):
        seen = await world.buckets.look(asks)
        assert seen.granted
        assert [standing.remaining for standing in seen.standings] == [3] * 4
        assert [standing.reset_s for standing in seen.standings[:2]] == [0, 0]


async def test_buckets_of_one_rule_are_each_for_themselves(world: World) -> None:
    assert await granted(world.buckets, ask(rule(), 3, bucket="r|acme"))
    assert not await granted(world.buckets, ask(rule(), 3, bucket="r|acme"))
    assert await granted(world.buckets, ask(rule(), 3, bucket="r|other \x00|tenant"))


async def test_a_changed_rate_keeps_the_level(world: World) -> None:
    assert await granted(world.buckets, ask(rule(amount=0.01, burst=3), 2))
    found = await world.buckets.look([ask(rule(amount=0.02, burst=10))])
    assert found.standings[0].remaining == pytest.approx(1, abs=0.1)
    smaller = await world.buckets.look([ask(rule(amount=0.02, burst=0.5), 0.1)])
    assert smaller.standings[0].remaining == pytest.approx(0.5, abs=0.1)


async def test_a_rule_that_becomes_one_of_another_kind_begins_anew(world: World) -> None:
    assert await granted(world.buckets, ask(rule(), 3))
    assert await granted(world.buckets, ask(rule(kind="strict", amount=1)))
    assert await granted(world.buckets, ask(rule(kind="concurrency", amount=1)))


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    costs=st.lists(
        st.tuples(st.floats(0, 4), st.sampled_from([0.0, 0.0, 0.003]), st.floats(0, 6)),
        min_size=1,
        max_size=25,
    ),
    burst=st.floats(1, 5),
)
async def test_never_more_than_burst_and_rate_in_any_time(
    world: World, costs: list[tuple[float, float, float]], burst: float
) -> None:
    """Asked, then some time, then settled to another cost: debts are paid."""
    of = rule(f"r{world.now_s()}", amount=20, burst=burst)
    given: list[tuple[float, float, float]] = []
    for cost, time_s, true in costs:
        one = ask(of, cost)
        before_s = world.now_s()
        if await granted(world.buckets, one, holder=(holder := f"{len(given)}")):
            given.append((before_s, world.now_s(), cost))
            if true <= cost:
                world.buckets.settle([one], [true], holder=holder)
                given[-1] = (before_s, world.now_s(), true)
        await world.passes(time_s)
    for first in range(len(given)):
        for last in range(first, len(given)):
            # Whatever moment it was decided in.
            time_s = given[last][1] - given[first][0]
            total = sum(cost for _, _, cost in given[first : last + 1])
            assert total <= burst + 20 * time_s + 1e-6


async def test_a_strict_rule_never_passes_one_more_in_any_period(world: World) -> None:
    of = rule(kind="strict", amount=4, period_s=0.2)
    given: list[tuple[float, float]] = []
    end_s = world.now_s() + 0.9
    while world.now_s() < end_s:
        before_s = world.now_s()
        if await granted(world.buckets, ask(of)):
            given.append((before_s, world.now_s()))
        await world.passes(0.005)
    assert len(given) >= 12
    crossings = [
        late for early, late in zip(given, given[4:], strict=False) if late[1] - early[0] < 0.2
    ]
    assert not crossings
