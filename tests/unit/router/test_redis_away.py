"""While Redis is away: the shares of all routers make the rule and no more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis import away
from aiflow_router.limits.redis.away import Away, Seat, share
from aiflow_router.limits.rule import Ask, Rule


def rule(name: str = "r", **fields: Any) -> Rule:
    return Rule(name=name, **{"amount": 12.0, "burst": 6.0, **fields})


@pytest.mark.parametrize(
    ("of", "seats", "expected"),
    [
        pytest.param(rule(), 1, [(12, 6)], id="who is alone has all of it"),
        pytest.param(rule(), 3, [(4, 2)] * 3, id="a rate and its burst are cut"),
        pytest.param(rule(burst=2), 3, [(6, 1), (6, 1), None], id="no burst is less than one call"),
        pytest.param(
            rule(burst=2, unit="tokens"), 4, [(3, 0.5)] * 4, id="other units can always be cut"
        ),
        pytest.param(
            rule(kind="concurrency", amount=5, burst=0),
            3,
            [(2, 0), (2, 0), (1, 0)],
            id="places are dealt out whole",
        ),
        pytest.param(
            rule(kind="strict", amount=2, burst=0),
            4,
            [(1, 0), (1, 0), None, None],
            id="of a tiny limit the last have nothing",
        ),
        pytest.param(rule(kind="day", amount=7, burst=0), 2, [(4, 0), (3, 0)], id="quotas too"),
    ],
)
def test_the_shares(of: Rule, seats: int, expected: list[tuple[float, float] | None]) -> None:
    shares = [share(of, Seat(of=seats, rank=rank)) for rank in range(seats)]
    assert [found and (found.amount, found.burst) for found in shares] == expected


@given(
    kind=st.sampled_from(["rate", "strict", "concurrency", "day", "month"]),
    unit=st.sampled_from(["calls", "tokens"]),
    amount=st.integers(1, 1000),
    burst=st.floats(1, 100),
    seats=st.integers(1, 50),
)
def test_all_shares_together_are_the_rule_and_no_more(
    kind: Any, unit: Any, amount: int, burst: float, seats: int
) -> None:
    of = rule(kind=kind, unit=unit, amount=float(amount), burst=burst)
    shares = [share(of, Seat(of=seats, rank=rank)) for rank in range(seats)]
    some = [found for found in shares if found is not None]
    assert sum(found.amount for found in some) == pytest.approx(amount)
    if kind == "rate":
        assert sum(found.burst for found in some) == pytest.approx(burst)
        if unit == "calls":
            assert all(found.burst >= 1 for found in some)


@pytest.mark.parametrize(
    ("rules", "granted", "by"),
    [
        pytest.param([rule(away="open")], True, "open", id="open: let go"),
        pytest.param([rule(away="closed")], False, "closed", id="closed: refused"),
        pytest.param([rule(away="share")], True, "share", id="share: decided here"),
        pytest.param(
            [rule("a", away="open"), rule("b", away="closed")], False, "closed", id="all must pass"
        ),
        pytest.param(
            [rule("a", away="open"), rule("b", away="share")], True, "share", id="what is counted"
        ),
        pytest.param(
            [rule("a", away="closed", mode="shadow"), rule("b", away="open")],
            True,
            "open",
            id="a rule in shadow refuses nobody",
        ),
        pytest.param(
            [rule(away="share", kind="strict", amount=1, burst=0)],
            False,
            "closed",
            id="a share of nothing is closed",
        ),
    ],
)
async def test_what_each_rule_says(rules: list[Rule], granted: bool, by: str) -> None:
    away = Away(Memory())
    away.seat = Seat(of=2, rank=1)
    asks = [Ask(rule=of, bucket=of.name, cost=1.0) for of in rules]
    seen, verdict = await away.look(asks), await away.take(asks, holder="it")
    assert (verdict.granted, verdict.by) == (granted, by)
    assert (seen.granted, seen.by) == (granted, by)
    assert len(verdict.standings) == len(rules)
    if not granted:
        assert any(standing.wait_s > 0 for standing in verdict.standings)


async def test_what_was_granted_here_is_settled_here() -> None:
    local = Memory(clock=lambda: 0.0)
    away = Away(local)
    asks = [
        Ask(rule=rule(), bucket="r", cost=5.0),
        Ask(rule=rule("o", away="open"), bucket="o", cost=1.0),
    ]
    await away.take(asks, holder="it")
    assert away.settle(asks[:1], [2.0], holder="it")
    assert not away.settle(asks[:1], [2.0], holder="it"), "it was settled twice"
    assert not away.settle(asks[:1], [2.0], holder="of Redis")
    assert (await local.look(asks[:1])).standings[0].remaining == 4


async def test_calls_that_are_never_settled_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "MOST_GRANTED", 10)
    here = Away(Memory())
    for number in range(100):
        await here.take([Ask(rule=rule(away="open"), bucket="r", cost=1.0)], holder=str(number))
    assert len(here._granted) == 10
