"""What each part of a route's policy means for a call, in words and numbers.

A routing feature adds its line here: a function in TOPICS under its key in aiflow.yaml, and where
calls may be answered under other names a function in CANDIDATES.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.session import session as home_of
from aiflow_router.explaining.explanation import Line, Question
from aiflow_router.forwarding.kinds import Method
from aiflow_router.limits.overload import Overload
from aiflow_router.routing.table import GatedPlan, Policy

_PICKED_BY = {
    "batch_aware": "the fullest endpoint that has room in its batches, then the least busy",
    "least_request": "the least busy endpoint for its weight",
    "peak_ewma": "the endpoint likely to answer first",
    "round_robin": "the endpoints in turn, as often as their weights say",
    "session": "the calls of one session at one endpoint, others at the least busy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """All that a line may look at.

    Attributes:
        plan: None where no endpoint takes calls.
        fit: who may be picked.
        call_kind: what is known of the method of a service.
    """

    question: Question
    policy: Policy
    plan: GatedPlan | None
    fit: Sequence[Load]
    call_kind: Method | None
    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    memory: Memory
    session: str


def seconds(value_s: float) -> str:
    if value_s < 1:
        return f"{value_s * 1000:.3g} ms"
    return f"{value_s:.3g} s" if value_s < 1000 else f"{value_s:.0f} s"


def _timeout(subject: Subject) -> str:
    return (
        f"{seconds(subject.policy.timeout_s)} for a call with one request and one answer; a stream "
        "lives as long as its caller lets it"
    )


def _balance(subject: Subject) -> str:
    name = subject.policy.balance
    says = f"{name}: {_PICKED_BY[name]}"
    if subject.policy.latency_aim_s is not None:
        says += f", if answers are expected within {seconds(subject.policy.latency_aim_s)}"
    session = subject.question.session
    if name == "session" and session and subject.fit:
        asked = _Asked(memory=Memory(), session=session)
        home = home_of(subject.fit, random.Random(0), subject.now_s, asked)  # noqa: S311
        says += f'; session "{session}" is at home at {home.endpoint.address}'
    return says


def _retry(subject: Subject) -> str:
    retry = subject.policy.retry
    if retry.attempts == 1:
        return "one attempt, no retry"
    says = (
        f"up to {retry.attempts} endpoints: at once where no connection is made; {_again(subject)}"
    )
    if retry.per_try_timeout_s is not None:
        says += f"; a try may take {seconds(retry.per_try_timeout_s)} while another can follow"
    floor = f", {retry.budget_floor} always may" if retry.budget_floor else ""
    return f"{says}; {retry.budget:.0%} of the calls in flight may be retries or hedges{floor}"


def _again(subject: Subject) -> str:
    """Whether a call that was sent may be sent again."""
    after = "after UNAVAILABLE" + (
        "" if subject.policy.retry.per_try_timeout_s is None else " or a try that took too long"
    )
    if subject.question.kind == "model":
        return f"{after} outside a sequence"
    method = subject.question.method
    if not method:
        return f"{after} for methods whose proto says that they may be repeated"
    if subject.call_kind is None:
        return f"never once {method} was sent, as its kind is not known (yet)"
    if not subject.call_kind.unary:
        return f"never once {method} was sent, as it streams"
    if subject.call_kind.repeatable:
        return f"{after}, for {method} may be repeated by its proto"
    return f"never once {method} was sent, for its proto does not say that it may be repeated"


def _hedge(subject: Subject) -> str:
    policy = subject.policy
    if not policy.hedged:
        return "none"
    if policy.hedge_after_s is not None:
        return f"another endpoint is asked after {seconds(policy.hedge_after_s)} without an answer"
    hedge = None if subject.plan is None else subject.plan.hedge
    delay_s = None if hedge is None else hedge.delay_s()
    if delay_s is None:
        return "another endpoint is asked after the p95 of answer times, which is not known yet"
    return f"another endpoint is asked after the p95 of answer times, now {seconds(delay_s)}"


def _overload(subject: Subject) -> str:
    overload = subject.policy.overload
    if overload.mode == "off":
        return "off: no limit"
    says = f"up to {_limit(overload)} calls in flight, {overload.queue} wait, the rest is refused"
    return says if overload.mode == "enforce" else f"shadow, so only counted: {says}"


def _limit(overload: Overload) -> str:
    if overload.limit is not None:
        return str(overload.limit)
    return f"{overload.lowest} to {overload.highest} (adaptive)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Topic:
    """`part` is the part of the policy it speaks of, to tell whether that is the default."""

    says: Callable[[Subject], str]
    part: Callable[[Policy], object]


TOPICS: Mapping[str, _Topic] = {
    "timeout": _Topic(says=_timeout, part=lambda policy: policy.timeout_s),
    "balance": _Topic(says=_balance, part=lambda policy: (policy.balance, policy.latency_aim_s)),
    "retry": _Topic(says=_retry, part=lambda policy: policy.retry),
    "hedge": _Topic(says=_hedge, part=lambda policy: (policy.hedged, policy.hedge_after_s)),
    "overload": _Topic(says=_overload, part=lambda policy: policy.overload),
}


def lines(subject: Subject, *, default: Policy) -> tuple[Line, ...]:
    """What each topic says."""
    return tuple(
        Line(
            topic=topic,
            says=one.says(subject),
            by_default=one.part(subject.policy) == one.part(default),
        )
        for topic, one in TOPICS.items()
    )


def _itself(subject: Subject) -> Iterable[tuple[str, str]]:
    yield subject.question.name, "asked for"


# Names and the reason for each, in the order in which calls go to them.
CANDIDATES: tuple[Callable[[Subject], Iterable[tuple[str, str]]], ...] = (_itself,)
