"""`limits:` of aiflow.yaml: what is taken for which rule, and what is refused, where and why."""

from __future__ import annotations

import pytest
from unit.router.config_kit import refusal

from aiflow_router.config.file import ConfigError, parse, parse_policy
from aiflow_router.limits.rule import Rule
from aiflow_router.policy.edition import canonical

STATIC = (
    "discovery: {static: [{backend: b, address: '127.0.0.1:9', protocol: oip, models: [gpt-5]}]}\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "{name: a, rate: 100/s}",
            Rule(name="a", amount=100, burst=100),
            id="a burst is what one period brings",
        ),
        pytest.param(
            "{name: a, rate: 0.5/min}",
            Rule(name="a", amount=0.5, period_s=60, burst=1),
            id="a burst is one call at least",
        ),
        pytest.param(
            "{name: a, rate: 4/min, strict: true, per: [tenant]}",
            Rule(name="a", kind="strict", amount=4, period_s=60, per=("tenant",)),
            id="a strict rate has no burst",
        ),
        pytest.param(
            "{name: a, concurrency: 3, per: [platform]}",
            Rule(name="a", kind="concurrency", amount=3),
            id="platform is nobody in particular",
        ),
        pytest.param(
            "{name: a, quota: 1000/month, cost: tokens, assume: 10}",
            Rule(name="a", kind="month", amount=1000, unit="tokens", assume=10),
            id="a quota of tokens",
        ),
        pytest.param(
            "{name: a, rate: 1/h, match: {model: gpt-5}, mode: off}",
            Rule(name="a", amount=1, period_s=3600, burst=1, model="gpt-5", mode="off"),
            id="of one model, switched off",
        ),
        pytest.param(
            "{name: a, rate: 4/min, burst: 1, wait: true, queue: 9, ages: 5s}",
            Rule(name="a", amount=4, period_s=60, burst=1, wait=True, queue=9, ages_s=5),
            id="one for which calls wait",
        ),
    ],
)
def test_a_limit_is_a_rule(text: str, expected: Rule) -> None:
    config = parse(f"limits: [{text}]")
    assert config.limits[0].rule() == expected
    # As an operator gets it back, and may send it again.
    again = parse_policy(canonical(config.policy_document()))
    assert again.limits[0].rule() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("{rate: 1/s}", "f:1:10: limits.0.name: Field required", id="without a name"),
        pytest.param(
            "{name: a b, rate: 1/s}", "f:1:11: limits.0.name: must be", id="a name in two"
        ),
        pytest.param(
            "{name: a}", "needs one of `rate`, `concurrency` and `quota`", id="of nothing"
        ),
        pytest.param(
            "{name: a, rate: 1/s, quota: 1/day}", "has `rate` and `quota`", id="of two kinds"
        ),
        pytest.param("{name: a, rate: 4}", 'such as "100/s", "4/min"', id="a rate without a time"),
        pytest.param("{name: a, rate: 4/sec}", "limits.0.rate: must be", id="an unknown time"),
        pytest.param("{name: a, rate: 4/day}", "limits.0.rate: must be", id="a rate a day"),
        pytest.param("{name: a, quota: 4/h}", "limits.0.quota: must be", id="a quota an hour"),
        pytest.param("{name: a, rate: -4/s}", "limits.0.rate: must be", id="a negative rate"),
        pytest.param("{name: a, rate: 0/s}", "must be more than 0", id="a rate of nothing"),
        pytest.param("{name: a, rate: 9999999999/s}", "more than can be counted", id="absurd rate"),
        pytest.param("{name: a, quota: 99999999999999/day}", "more than can", id="absurd quota"),
        pytest.param("{name: a, concurrency: 0}", "greater than or equal to 1", id="no places"),
        pytest.param(
            "{name: a, rate: 4/s, burst: 0.5}",
            "f:1:31: limits.0.burst: must be 1 or more",
            id="a burst of less than a call",
        ),
        pytest.param(
            "{name: a, rate: 4/s, burst: 5, cost: tokens, assume: 10}",
            "limits.0.burst: must be 10 or more",
            id="a burst of less than is assumed",
        ),
        pytest.param(
            "{name: a, quota: 5/day, cost: tokens, assume: 10}",
            "limits.0.assume: is more than the 5",
            id="a quota of less than is assumed",
        ),
        pytest.param(
            "{name: a, quota: 0.5/day}", "less than one call", id="a quota of half a call"
        ),
        pytest.param(
            "{name: a, rate: 4/s, cost: tokens, assume: -1}",
            "must be 0 or more: no call gives",
            id="a negative cost",
        ),
        pytest.param("{name: a, rate: 4/s, cost: token}", "did you mean `tokens`?", id="misspelt"),
        pytest.param("{name: a, rate: 4/s, per: [tenants]}", "did you mean `tenant`?", id="whose"),
        pytest.param("{name: a, rate: 4/s, brust: 1}", "did you mean `burst`?", id="unknown key"),
        pytest.param("{name: a, rate: 4/s, per: [key, key]}", '"key" twice', id="per key twice"),
        pytest.param(
            "{name: a, rate: 4/s, per: [platform, key]}", "everybody together", id="all and each"
        ),
        pytest.param(
            "{name: a, rate: 4/s, assume: 2}", "for what callers declare", id="calls assumed"
        ),
        pytest.param(
            "{name: a, concurrency: 4, burst: 2}", "is for a `rate`", id="a burst of places"
        ),
        pytest.param(
            "{name: a, quota: 4/day, strict: true}", "is for a `rate`", id="a strict quota"
        ),
        pytest.param(
            "{name: a, concurrency: 4, cost: bytes}", "is a call each", id="places for bytes"
        ),
        pytest.param(
            "{name: a, rate: 2000/s, strict: true}", "whole number up to 1000", id="strict and big"
        ),
        pytest.param(
            "{name: a, rate: 2/s, strict: true, cost: bytes}", "counts calls", id="strict bytes"
        ),
        pytest.param(
            "{name: a, quota: 4/day, wait: true}", "nobody waits for tomorrow", id="a quota waits"
        ),
        pytest.param(
            "{name: a, rate: 4/s, queue: 3}", "only with `wait: true`", id="queue of none"
        ),
        pytest.param("{name: a, rate: 4/s, ages: 3s}", "only with `wait: true`", id="ages of none"),
        pytest.param(
            "{name: a, rate: 4/s, match: {model: m, service: s}}", "match either", id="two matches"
        ),
        pytest.param(
            "{name: a, rate: 4/s, match: {model: m}, per: [model]}",
            "one model or service only",
            id="each of one model",
        ),
        pytest.param(
            "{name: a, rate: 4/s, match: {service: inference.GRPCInferenceService}}",
            "limits.0.match.service: no call to",
            id="a service whose calls are of models",
        ),
        pytest.param(
            "{name: a, rate: 4/s, match: {service: a/Echo}}",
            "limits.0.match.service: no endpoint can ever serve it",
            id="a service that can have no such name",
        ),
        pytest.param(
            "{name: a, rate: 4/s, match: {service: aiflow.admin.v1.PolicyService}}",
            "what administers it is never limited",
            id="the router's own service",
        ),
        pytest.param(
            "{name: a, rate: 4/s}, {name: a, rate: 5/s}", "f:1:33: limits.1.name: two", id="twice"
        ),
        pytest.param("{name: a, rate: 4/s, lease: 1s}", "is about Redis", id="a lease of nothing"),
        pytest.param("{name: a, rate: 4/s, away: open}", "is about Redis", id="nothing is away"),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    assert expected in refusal(f"limits: [{text}]")


def test_a_limit_of_a_model_that_nobody_can_serve_is_refused() -> None:
    text = "limits: [{name: a, rate: 4/s, match: {model: gpt5}}]"
    with pytest.raises(ConfigError, match=r"can never match: .* did you mean `gpt-5`"):
        parse(STATIC + text)
    parse(STATIC + text.replace("gpt5", "gpt-5"))
    with pytest.raises(ConfigError, match=r"match.service: can never match: no static endpoint"):
        parse(STATIC + text.replace("model: gpt5", "service: a.Echo"))


MANY = "listen: {workers: 2}\n"


@pytest.mark.parametrize(
    ("mode", "refused"),
    [
        pytest.param("enforce", True, id="each worker would grant all of it"),
        pytest.param("shadow", False, id="what is only counted may be counted by each"),
        pytest.param("off", False, id="what is off"),
    ],
)
def test_several_workers_without_redis(mode: str, refused: bool) -> None:
    text = f"limits: [{{name: a, rate: 4/s, mode: {mode}}}]"
    several = parse(MANY)
    if not refused:
        parse(MANY + text)
        parse_policy(text, running=several)
        return
    with pytest.raises(ConfigError, match="cannot be kept by 2 workers") as of_the_file:
        parse(MANY + text)
    assert ":2:10: limits.0: " in str(of_the_file.value)
    with pytest.raises(ConfigError, match="cannot be kept by 2 workers"):
        parse_policy(text, running=several)
    parse_policy(text, running=parse(f"{MANY}redis: {{url: 'redis://127.0.0.1'}}"))
