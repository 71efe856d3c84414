"""What a route's policy means for a call, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from unit.router.loads import load

from aiflow_router.caching.cache import CacheRule
from aiflow_router.explaining.explanation import Question
from aiflow_router.explaining.policy import Subject, lines
from aiflow_router.forwarding.kinds import Method
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.limits.overload import Overload
from aiflow_router.routing.policy import Policy
from aiflow_router.routing.price import Price
from aiflow_router.routing.shadow import ShadowRule

READS = Method(name="/a.B/Get", unary=True, repeatable=True)
WRITES = Method(name="/a.B/Put", unary=True, repeatable=False)
STREAMS = Method(name="/a.B/Watch", unary=False, repeatable=True)

PRICE = Price(call=1_000_000, units={"tokens": 2_000})
COPIES = ShadowRule(to="v3", share=0.125, max_in_flight=16)


def said(policy: Policy, *, call_kind: Method | None = None, **question: Any) -> Mapping[str, str]:
    subject = Subject(
        question=Question(**{"kind": "model", "name": "m", **question}),
        policy=policy,
        course=None,
        plan=None,
        fit=(load(1), load(2), load(3)),
        call_kind=call_kind,
        now_s=0.0,
    )
    return {line.topic: line.says for line in lines(subject, default=Policy())}


def of(name: str) -> dict[str, Any]:
    return {"kind": "service", "name": "a.B", "method": name}


def adaptive() -> Overload:
    return Overload(limit=None, lowest=3, highest=64, queue=8)


@pytest.mark.parametrize(
    ("topic", "policy", "question", "says"),
    [
        ("timeout", Policy(timeout_s=2.5), {}, "2.5 s for a call"),
        ("timeout", Policy(timeout_s=0.25), {}, "250 ms for a call"),
        ("balance", Policy(balance="round_robin"), {}, "in turn"),
        ("balance", Policy(balance="session"), {"session": "cart-7"}, "is at home at h:"),
        ("balance", Policy(balance="batch_aware", latency_aim_s=0.2), {}, "within 200 ms"),
        ("retry", Policy(retry=RetryPolicy(attempts=1)), {}, "one attempt, no retry"),
        ("retry", Policy(), {}, "after UNAVAILABLE outside a sequence"),
        ("retry", Policy(), {}, "20% of the calls in flight may be retries or hedges, 3 always"),
        ("retry", Policy(retry=RetryPolicy(per_try_timeout_s=0.5)), {}, "a try may take 500 ms"),
        ("retry", Policy(), {**of("Get"), "call_kind": READS}, "Get may be repeated by its proto"),
        ("retry", Policy(), {**of("Put"), "call_kind": WRITES}, "never once Put was sent"),
        ("retry", Policy(), {**of("Watch"), "call_kind": STREAMS}, "as it streams"),
        ("retry", Policy(retry=RetryPolicy(shadow=True)), {}, "shadow, so only counted: up to 2"),
        ("hedge", Policy(hedged=True, hedge_shadow=True), {}, "shadow, so only counted: another"),
        ("cache", Policy(), {}, "none"),
        (
            "cache",
            Policy(cache=CacheRule(ttl_s=60, max_bytes=2**26)),
            {},
            "within 60 s; up to 64 M",
        ),
        ("cache", Policy(cache=CacheRule(ttl_s=60, max_bytes=9, shadow=True)), {}, "only counted"),
        ("shadow", Policy(shadow=COPIES), {}, "v3 gets a copy of 12.5% of the calls, up to 16"),
        ("price", Policy(), {}, "none"),
        ("price", Policy(price=PRICE), {}, "1 credit a call; 0.002 credits for each of tokens"),
        ("price", Policy(price=PRICE), {}, "which a call must declare; held before the call"),
        ("retry", Policy(), of("Odd"), "its kind is not known"),
        ("hedge", Policy(), {}, "none"),
        ("hedge", Policy(hedged=True, hedge_after_s=0.15), {}, "after 150 ms without an answer"),
        ("hedge", Policy(hedged=True), {}, "p95 of answer times, which is not known yet"),
        ("overload", Policy(), {}, "up to 1024 calls in flight, 128 wait"),
        ("overload", Policy(overload=adaptive()), {}, "up to 3 to 64 (adaptive) calls"),
        ("overload", Policy(overload=Overload(mode="shadow")), {}, "only counted"),
        ("overload", Policy(overload=Overload(mode="off")), {}, "no limit"),
    ],
)
def test_each_part_says_what_it_means(
    topic: str, policy: Policy, question: dict[str, Any], says: str
) -> None:
    assert says in said(policy, **question)[topic]


def test_what_nobody_configured_is_said_to_be_the_default() -> None:
    subject = Subject(
        question=Question(kind="model", name="m"),
        policy=dataclasses.replace(Policy(), timeout_s=1.0),
        course=None,
        plan=None,
        fit=(),
        call_kind=None,
        now_s=0.0,
    )
    told = {line.topic: line.by_default for line in lines(subject, default=Policy())}
    assert told == {
        **dict.fromkeys(("balance", "retry", "hedge", "overload"), True),
        **dict.fromkeys(("split", "fallback", "cache", "shadow", "price"), True),
        "timeout": False,
    }
