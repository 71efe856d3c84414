"""Which rules a call meets, and under which names of buckets."""

from __future__ import annotations

import pytest

from aiflow_router.identity.caller import ANONYMOUS, Caller
from aiflow_router.limits.rule import Per, Rule
from aiflow_router.limits.rules import Rules, asked, bucket

ANN = Caller(
    name="a", tenant="acme", may=frozenset({"call"}), key="k1", department="art", member="ann"
)
BOB = Caller(
    name="b", tenant="beta", may=frozenset({"call"}), key="k2", department="art", member="ann"
)


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        pytest.param((), "a", id="one for all"),
        pytest.param(("tenant",), "a|acme", id="of the tenant"),
        pytest.param(("department",), "a|acme/art", id="a department is of its tenant"),
        pytest.param(("member",), "a|acme/ann", id="a member is of its tenant"),
        pytest.param(("key",), "a|k1", id="of the key"),
        pytest.param(("model",), "a|m%7Cn%2Fo", id="names cannot be mistaken for others"),
        pytest.param(("session",), "a|acme/s", id="a session is of its tenant"),
        pytest.param(("tenant", "model"), "a|acme|m%7Cn%2Fo", id="of two"),
    ],
)
def test_whose_bucket(per: tuple[Per, ...], expected: str) -> None:
    rule = Rule(name="a", amount=1, burst=1, per=per)
    assert bucket(rule, ANN, "m|n/o", "s") == expected


def test_two_tenants_have_nothing_in_common() -> None:
    for per in ("tenant", "department", "member", "key", "session"):
        rule = Rule(name="a", amount=1, burst=1, per=(per,))
        assert bucket(rule, ANN, "m", "s") != bucket(rule, BOB, "m", "s")


def test_who_says_no_session_shares_one() -> None:
    rule = Rule(name="a", amount=1, burst=1, per=("session",))
    assert bucket(rule, ANONYMOUS, "m") == "a|anonymous/"


RULES = Rules(
    [
        Rule(name="all", amount=1, burst=1),
        Rule(name="m", amount=1, burst=1, model="m"),
        Rule(name="s", amount=1, burst=1, service="s"),
        Rule(name="off", amount=1, burst=1, mode="off"),
        Rule(name="shadow", amount=1, burst=1, mode="shadow", model="m"),
    ]
)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        pytest.param(
            "model", "m", ["all", "m", "shadow"], id="a model, in the order of the policy"
        ),
        pytest.param("model", "n", ["all"], id="another model"),
        pytest.param("service", "s", ["all", "s"], id="a service"),
        pytest.param("service", "m", ["all"], id="a service with the name of a model"),
    ],
)
def test_which_rules_match(kind: str, name: str, expected: list[str]) -> None:
    matched = RULES.matched(ANN, kind, name)  # type: ignore[arg-type]
    assert [ask.rule.name for ask in matched.asks] == expected
    assert RULES.matched(ANN, kind, name) is matched  # type: ignore[arg-type]
    assert not matched.varies


def test_no_rule_but_those_that_are_off_is_none() -> None:
    assert not Rules([Rule(name="off", amount=1, burst=1, mode="off")]).some


def test_a_rule_that_is_the_same_stays_the_same() -> None:
    after = RULES.after(
        [
            Rule(name="all", amount=1, burst=1),
            Rule(name="m", amount=2, burst=1, model="m"),
        ]
    )
    assert after.all[0] is RULES.all[0]
    assert after.all[1].amount == 2


def test_only_what_varies_is_made_anew() -> None:
    rules = Rules(
        [
            Rule(name="calls", amount=1, burst=1),
            Rule(name="session", amount=1, burst=1, per=("session",)),
            Rule(name="tokens", amount=1, burst=1, unit="tokens"),
        ]
    )
    matched = rules.matched(ANN, "model", "m")
    found = asked(matched, ANN, "m", session="x", cost=lambda _: 7.0)
    assert found[0] is matched.asks[0]
    assert (found[1].bucket, found[1].cost) == ("session|acme/x", 1.0)
    assert (found[2].bucket, found[2].cost) == ("tokens", 7.0)
