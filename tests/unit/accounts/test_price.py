"""What a route costs, as aiflow.yaml says it and as a call is charged."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from aiflow_router.config.file import ConfigError, parse, parse_policy, printed
from aiflow_router.routing.price import Price

STORAGE = "storage: {url: 'sqlite:///a.db'}\n"
ROUTE = "routes:\n  - match: {model: m}\n    price: "


def price(text: str) -> Price:
    config = parse(STORAGE + ROUTE + text)
    assert parse(printed(config)).routes == config.routes, "what is printed can be read again"
    found = config.routes[0].policy().price
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", Price(call=2_000_000)),
        ("0.002", Price(call=2_000)),
        ("'0.000001'", Price(call=1)),
        ("{call: 1, tokens: 0.002}", Price(call=1_000_000, units={"tokens": 2_000})),
        (
            "{pixels: 0.000001, assume: {pixels: 1000000}}",
            Price(units={"pixels": 1}, assume={"pixels": 1e6}),
        ),
        (
            "{gpu_ms: 0.01, assume: {gpu_ms: 500}}",
            Price(units={"gpu-ms": 10_000}, assume={"gpu-ms": 500}),
        ),
    ],
)
def test_prices(text: str, expected: Price) -> None:
    assert price(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("-1", "4:5: routes.0.price.call: must be 0 or more", id="negative"),
        pytest.param("0", "routes.0.price: costs nothing", id="nothing"),
        pytest.param("0.0000001", "has more than 6 decimals", id="finer than credits"),
        pytest.param("1e30", "is more than 1000000000 credits", id="absurd"),
        pytest.param("much", "is no amount of credits", id="a word"),
        pytest.param(".inf", "is no amount of credits", id="infinite"),
        pytest.param("yes", "must be a number of credits", id="a truth"),
        pytest.param("{cal: 1}", "did you mean `call`?", id="a slip of the pen"),
        pytest.param("{call: 1, assume: {tokens: 4}}", "has no effect", id="idle assumption"),
        pytest.param("{tokens: 1, assume: {tokens: -4}}", "greater than or equal", id="below 0"),
        pytest.param("{gpu_ms: 1}", "say with `assume: {gpu_ms: ...}`", id="never declared"),
    ],
)
def test_what_is_no_price_is_refused_where_it_stands(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(STORAGE + ROUTE + text)
    assert problem in str(caught.value)


def test_a_price_needs_a_database_wherever_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"aiflow.yaml:3:5: routes.0.price: .*set `storage: "):
        parse(ROUTE + "2")
    without = parse("")
    with pytest.raises(ConfigError, match=r"policy:3:5: routes.0.price: is paid in credits"):
        parse_policy(ROUTE + "2", running=without)
    assert parse_policy(ROUTE + "2", running=parse(STORAGE)).routes


def test_a_price_of_what_the_router_itself_answers_would_be_paid_by_nobody() -> None:
    route = ROUTE.replace("model: m", "service: inference.GRPCInferenceService")
    with pytest.raises(ConfigError, match="is answered by the router itself"):
        parse(STORAGE + route + "2")


@pytest.mark.parametrize(
    ("declared", "used", "held", "paid"),
    [
        pytest.param({"tokens": 500}, {"tokens": 480}, 2_000_000, 1_960_000, id="less was used"),
        pytest.param({"tokens": 500}, {}, 2_000_000, 2_000_000, id="nobody told what was used"),
        pytest.param({}, {"tokens": 10}, 1_200_000, 1_020_000, id="nobody declared"),
        pytest.param({"tokens": 1}, {"tokens": 9}, 1_002_000, 1_018_000, id="more was used"),
        pytest.param({"tokens": 0.0001}, {}, 1_000_001, 1_000_001, id="parts are rounded up"),
    ],
)
def test_a_call_costs_what_it_used(
    declared: Mapping[str, float], used: Mapping[str, float], held: int, paid: int
) -> None:
    found = Price(call=1_000_000, units={"tokens": 2_000}, assume={"tokens": 100})
    assert not list(found.missing(declared))
    assert (found.most(declared), found.true(used, declared)) == (held, paid)


def test_what_is_not_declared_and_not_assumed_is_missing() -> None:
    found = Price(units={"tokens": 1, "pixels": 1}, assume={"pixels": 1})
    assert list(found.missing({})) == ["tokens"]
    assert not list(found.missing({"tokens": 0}))
