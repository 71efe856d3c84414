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
from aiflow_router.routing.course import Course
from aiflow_router.routing.names import GatedPlan
from aiflow_router.routing.policy import Policy

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
        course: of a model whose route splits or falls back; None for any other name.
        plan: the name's own; None where no endpoint takes calls.
        fit: who may be picked.
        call_kind: what is known of the method of a service.
    """

    question: Question
    policy: Policy
    course: Course | None
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
    if retry.shadow:
        return "shadow, so only counted: " + _retry_says(subject)
    return _retry_says(subject)


def _retry_says(subject: Subject) -> str:
    retry = subject.policy.retry
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
    says = _hedge_says(subject)
    return f"shadow, so only counted: {says}" if policy.hedge_shadow else says


def _hedge_says(subject: Subject) -> str:
    policy = subject.policy
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


def _split(subject: Subject) -> str:
    course = subject.course
    if course is None or course.sides is None:
        return "none"
    sides = course.sides
    split = sides.split
    says = ", ".join(f"{share:.0%} {name}" for name, share in sides.shares().items())
    says += f" by {split.by}"
    if split.guard is not None:
        says += "; a guard stops a side that is worse" + (" (shadow)" if split.guard.shadow else "")
    for name, stop in sides.stopped.items():
        says += f"; {name} {'would be' if stop.shadow else 'is'} stopped: {stop.why}"
    return f"shadow, so only counted: {says}" if split.shadow else says


def _fallback(subject: Subject) -> str:
    fallback = subject.policy.fallback
    if fallback is None:
        return "none"
    says = f"to {', then '.join(fallback.to)} on {', '.join(sorted(fallback.on))}"
    if fallback.deadline_share is not None:
        says += f"; all but the last have {fallback.deadline_share:.0%} of the time"
    return f"shadow, so only counted: {says}" if fallback.shadow else says


def _cache(subject: Subject) -> str:
    cache = subject.policy.cache
    if cache is None:
        return "none"
    says = (
        f"an answer is given again to the same tenant for an equal request within "
        f"{seconds(cache.ttl_s)}; up to {cache.max_bytes / 2**20:.3g} MiB of answers are kept"
    )
    return f"shadow, so only counted: {says}" if cache.shadow else says


def _shadow(subject: Subject) -> str:
    shadow = subject.policy.shadow
    if shadow is None:
        return "none"
    return (
        f"{shadow.to} gets a copy of {shadow.share * 100:.3g}% of the calls, up to "
        f"{shadow.max_in_flight} at once; its answers are compared and thrown away"
    )


def _price(subject: Subject) -> str:
    price = subject.policy.price
    if price is None:
        return "none"
    return f"{price.said()}; held before the call, paid when it is answered"


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
    "split": _Topic(says=_split, part=lambda policy: policy.split),
    "fallback": _Topic(says=_fallback, part=lambda policy: policy.fallback),
    "cache": _Topic(says=_cache, part=lambda policy: policy.cache),
    "shadow": _Topic(says=_shadow, part=lambda policy: policy.shadow),
    "price": _Topic(says=_price, part=lambda policy: policy.price),
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


def firsts(subject: Subject) -> Mapping[str, float]:
    """Who is asked first, with the part of the calls for which it is."""
    course, question = subject.course, subject.question
    if course is None or course.sides is None or course.sides.split.shadow:
        return {question.name: 1.0}
    caller = {"tenant": question.tenant, "session": question.session}.get(course.sides.split.by, "")
    if caller:
        return {course.sides.choose(caller): 1.0}
    return {name: share for name, share in course.sides.shares().items() if share}


def chain(subject: Subject, first: str) -> Sequence[str]:
    """Who is asked in turn where `first` is the first."""
    return (first,) if subject.course is None else subject.course.chains[first]


def _first(subject: Subject) -> Iterable[tuple[str, str]]:
    asked = firsts(subject)
    for name, share in asked.items():
        part = "" if len(asked) == 1 else f"{share:.0%} of the calls"
        yield name, part or ("asked for" if name == subject.question.name else "this caller's side")


def _left_out(subject: Subject) -> Iterable[tuple[str, str]]:
    """Sides that get none of these calls, which are not to be missed."""
    if subject.course is None or subject.course.sides is None:
        return
    sides = subject.course.sides
    for name, share in sides.shares().items():
        if name in firsts(subject):
            continue
        if name in sides.stopped:
            yield name, f"stopped: {sides.stopped[name].why}"
        else:
            yield name, f"would get {share:.0%}" if sides.split.shadow else "gets none of these"


def _fallbacks(subject: Subject) -> Iterable[tuple[str, str]]:
    fallback = subject.policy.fallback
    for number, name in enumerate(() if fallback is None else fallback.to, 1):
        shadow = "" if fallback is None or not fallback.shadow else ", shadow: only counted"
        yield name, f"fallback {number}{shadow}"


# Names and the reason for each, in the order in which calls go to them.
CANDIDATES: tuple[Callable[[Subject], Iterable[tuple[str, str]]], ...] = (
    _first,
    _left_out,
    _fallbacks,
)
