"""Answers what would become of a call, from what this process knows; nothing is sent or counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.pool import Outlook
from aiflow_router.catalog.endpoint import Endpoint
from aiflow_router.catalog.snapshot import Snapshot
from aiflow_router.explaining.explanation import (
    BudgetView,
    Candidate,
    Explanation,
    GateView,
    Question,
    Refused,
)
from aiflow_router.explaining.policy import CANDIDATES, Subject, chain, firsts, lines, seconds
from aiflow_router.explaining.standing import draining, standing
from aiflow_router.forwarding.kinds import Method
from aiflow_router.forwarding.retry import Budget
from aiflow_router.limits.gate import PRIORITIES, Gate
from aiflow_router.limits.refusal import error_of
from aiflow_router.routing.names import GatedPlan
from aiflow_router.routing.policy import Kind
from aiflow_router.routing.table import Table
from aiflow_sdk import errors

# Of one candidate; there may be 10,000, and each costs 20 us until it is on the wire.
MAX_LISTED = 200


class Kinds(Protocol):
    def get(self, service: str, method: str) -> Method | None: ...


class Explainer:
    """Lives in one event loop."""

    def __init__(
        self,
        *,
        table: Table,
        snapshot: Callable[[], Snapshot],
        loads: Loads,
        kinds: Kinds,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._snapshot = snapshot
        self._loads = loads
        self._kinds = kinds
        self._clock = clock

    def explain(self, question: Question) -> Explanation:
        """Raises ModelNotFoundError, ServiceNotFoundError, as the call itself would end."""
        now_s = self._clock()
        kind, name = question.kind, question.name
        route = self._table.policy(kind, name)
        plan, _ = self._plan(kind, name)
        fit: Sequence[Load] = ()
        if plan is not None:
            outlook = plan.pool.outlook(now_s)
            fit = [load for load in plan.loads if load in outlook.fit]
        subject = Subject(
            question=question,
            policy=route or self._table.default,
            course=self._table.courses.get(name) if kind == "model" else None,
            plan=plan,
            fit=fit,
            call_kind=self._call_kind(question),
            now_s=now_s,
        )
        asked = firsts(subject)
        candidates = tuple(self._candidates(subject))
        refused: list[Refused] = []
        for first in asked:
            refused += self._refused(subject, chain(subject, first), many=len(asked) > 1)
        if subject.course is not None:
            budget: BudgetView | None = _budget(subject.course.budget)
        else:
            budget = None if plan is None else _budget(plan.budget)
        return Explanation(
            kind=kind,
            name=name,
            version=str(self._table.stamp[1]),
            matched=_matched(kind, name, by_default=route is None),
            by_default=route is None,
            verdict="; ".join(
                ("" if len(asked) == 1 else f"{share:.0%}: ")
                + self._verdict(subject, chain(subject, first))
                for first, share in asked.items()
            ),
            lines=lines(subject, default=self._table.default),
            candidates=candidates,
            gates=tuple(self._gates(question, candidates, now_s)),
            budget=budget,
            refused=tuple(refused),
        )

    def _plan(self, kind: Kind, name: str) -> tuple[GatedPlan | None, errors.AiflowError | None]:
        try:
            return self._table.found(kind, name), None
        except errors.NoEndpointError as error:
            return None, error

    def _call_kind(self, question: Question) -> Method | None:
        if question.kind == "model" or not question.method:
            return None
        return self._kinds.get(question.name, f"/{question.name}/{question.method}")

    def _verdict(self, subject: Subject, names: Sequence[str]) -> str:
        """What becomes of a call for which these are asked in turn."""
        passed_over = ""
        question, now_s = subject.question, subject.now_s
        for number, name in enumerate(names, 1):
            plan, error = self._plan(question.kind, name)
            if plan is not None:
                gate = plan.gates.unary
                met = gate.outlook(
                    tenant=question.tenant,
                    priority=_priority(question),
                    deadline_s=now_s + _patience_s(plan, question),
                    now_s=now_s,
                )
                if met.refusal is None or gate.shadow:
                    return passed_over + _goes(plan, question, now_s)
                error = error_of(met.refusal, plan.name)
            assert error is not None  # noqa: S101 - there is a plan or a reason
            condition = _goes_on(subject, error, last=number == len(names))
            if not condition:
                return f"{passed_over}refused: {error}"
            passed_over += f"{name} is passed over ({condition}), "
        raise AssertionError("the last one ends it")

    def _refused(self, subject: Subject, names: Sequence[str], *, many: bool) -> Iterator[Refused]:
        """What calls meet at the first of these, and who is asked then."""
        name, following = names[0], names[1] if len(names) > 1 else ""
        whose = f" for {name}" if many else ""
        plan, missing = self._plan(subject.question.kind, name)
        found: list[Refused] = []
        if missing is not None:
            found.append(Refused(when=f"every call{whose} now", error=missing))
        if plan is not None:
            found += _at_the_gate(plan, subject, whose)
            if plan.pool.panics(subject.now_s):
                found.append(Refused(when="where none can be reached", error=_out_of_reach(plan)))
        for one in found:
            goes_on = _goes_on(subject, one.error, last=not following)
            yield replace(one, goes_on_to=following if goes_on else "")

    def _gates(
        self, question: Question, candidates: Iterable[Candidate], now_s: float
    ) -> Iterator[GateView]:
        for candidate in candidates:
            plan, _ = self._plan(question.kind, candidate.name)
            if plan is None:
                continue
            gates = plan.gates
            if gates.stream is gates.unary:
                yield _gate(plan, "calls", gates.unary, question, now_s)
            else:
                yield _gate(plan, "unary calls", gates.unary, question, now_s)
                yield _gate(plan, "streams", gates.stream, question, now_s)

    def _candidates(self, subject: Subject) -> Iterator[Candidate]:
        for found in CANDIDATES:
            for name, role in found(subject):
                yield self._candidate(subject.question.kind, name, role, subject.now_s)

    def _candidate(self, kind: Kind, name: str, role: str, now_s: float) -> Candidate:
        plan, _ = self._plan(kind, name)
        leaving = [
            draining(endpoint, inflight=self._loads[endpoint].inflight)
            for endpoint in self._leaving(kind, name)
        ]
        if plan is None:
            return Candidate(name=name, role=role, endpoints=tuple(leaving[:MAX_LISTED]))
        outlook = plan.pool.outlook(now_s)
        listed = _first(plan.loads, outlook)[: max(0, MAX_LISTED - len(leaving))]
        stand = [
            standing(
                load,
                outlook=outlook,
                now_s=now_s,
                expected_s=plan.memory.expected_s(load, now_s),
            )
            for load in listed
        ]
        return Candidate(
            name=name,
            role=role,
            endpoints=(*stand, *leaving[:MAX_LISTED]),
            unlisted=len(plan.loads) - len(listed),
            panic=plan.pool.panics(now_s),
        )

    def _leaving(self, kind: Kind, name: str) -> Iterator[Endpoint]:
        """Endpoints that serve the name and take no new calls: no plan knows them."""
        for entry in self._snapshot().entries.values():
            if entry.ready():
                continue
            endpoint = entry.endpoint
            if name in (endpoint.models if kind == "model" else endpoint.services):
                yield endpoint


def _first(loads: Sequence[Load], outlook: Outlook) -> list[Load]:
    """Those that are not fit, then the busiest."""
    return sorted(loads, key=lambda load: (load in outlook.fit, -load.inflight))


def _matched(kind: Kind, name: str, *, by_default: bool) -> str:
    if by_default:
        return f'no route matches {kind} "{name}": the defaults hold'
    return f"the route with `match: {{{kind}: {name}}}`"


def _budget(budget: Budget) -> BudgetView:
    allowed = max(budget.floor, math.ceil(budget.share * budget.active))
    return BudgetView(inflight=budget.active, retrying=budget.retrying, allowed=allowed)


def _gate(plan: GatedPlan, calls: str, gate: Gate, question: Question, now_s: float) -> GateView:
    outlook = gate.outlook(
        tenant=question.tenant, priority=question.priority, deadline_s=math.inf, now_s=now_s
    )
    return GateView(
        name=plan.name,
        calls=calls,
        limit=gate.limit if gate.limit < sys.maxsize else None,
        adaptive=gate.adaptive,
        shadow=gate.shadow,
        inflight=gate.inflight,
        waiting=gate.waiting,
        queue=gate.queue,
        answer_s=gate.answer_s,
        ahead=outlook.ahead,
        wait_s=outlook.wait_s,
    )


def _patience_s(plan: GatedPlan, question: Question) -> float:
    if question.deadline_s is None:
        return plan.timeout_s
    return min(plan.timeout_s, question.deadline_s)


def _priority(question: Question) -> str:
    return question.priority if question.priority in PRIORITIES else "normal"


def _goes_on(subject: Subject, error: errors.AiflowError, *, last: bool) -> str:
    """The condition by which the call goes on to the next; empty where its caller is told."""
    fallback = subject.policy.fallback
    if last or fallback is None or fallback.shadow or subject.course is None:
        return ""
    early = fallback.deadline_share is not None
    return fallback.met(error.code, error.reason, early=early) or ""


def _at_the_gate(plan: GatedPlan, subject: Subject, whose: str) -> Iterator[Refused]:
    """Which calls would be told something else than an answer; the asked one first."""
    gate, now_s = plan.gates.unary, subject.now_s
    patience_s = _patience_s(plan, subject.question)
    asked = _priority(subject.question)
    for priority in sorted(PRIORITIES, key=lambda one: one != asked):
        outlook = gate.outlook(
            tenant=subject.question.tenant,
            priority=priority,
            deadline_s=now_s + patience_s,
            now_s=now_s,
        )
        if outlook.refusal is None:
            continue
        which = "such a call" if priority == asked else f"a call of priority {priority}"
        yield Refused(
            when=f"{which}{whose} now, with {seconds(patience_s)} to its deadline",
            error=error_of(outlook.refusal, plan.name),
            shadow=gate.shadow,
        )
    outlook = gate.outlook(
        tenant=subject.question.tenant, priority=asked, deadline_s=now_s, now_s=now_s
    )
    soonest_s = outlook.wait_s + gate.answer_s
    hasty = outlook.refusal
    if hasty is not None and hasty.reason == "DEADLINE_UNREACHABLE" and soonest_s < patience_s:
        yield Refused(
            when=f"a call{whose} with less than {seconds(soonest_s)} to its deadline",
            error=error_of(hasty, plan.name),
            shadow=gate.shadow,
        )


def _out_of_reach(plan: GatedPlan) -> errors.NoEndpointError:
    kind = "model" if plan.is_model else "service"
    return errors.NoEndpointError(
        f'no endpoint of {kind} "{plan.name}" could be reached: try again shortly',
        retry_after_s=1.0,
        metadata={kind: plan.name},
    )


def _goes(plan: GatedPlan, question: Question, now_s: float) -> str:
    """Where a call to it goes that is not refused."""
    outlook = plan.pool.outlook(now_s)
    fit = sum(load in outlook.fit or load in outlook.due for load in plan.loads)
    goes = f"goes to one of {fit} endpoints of {plan.name}"
    if fit == 1:
        goes = f"goes to the one endpoint of {plan.name}"
    if not outlook.fit:
        goes = f"no endpoint of {plan.name} is fit: it is tried at any of {len(plan.loads)}"
    gate = plan.gates.unary
    if gate.shadow or gate.inflight < gate.limit:
        return goes
    met = gate.outlook(
        tenant=question.tenant, priority=question.priority, deadline_s=math.inf, now_s=now_s
    )
    wait = f"about {seconds(met.wait_s)}" if met.wait_s else "for its turn"
    return f"waits {wait} behind {met.ahead} others, then {goes}"
