"""Answers what would become of a call, from what this process knows; nothing is sent or counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from aiflow_router.explaining.policy import CANDIDATES, Subject, lines, seconds
from aiflow_router.explaining.standing import draining, standing
from aiflow_router.forwarding.kinds import Method
from aiflow_router.limits.gate import PRIORITIES, Gate
from aiflow_router.limits.refusal import error_of
from aiflow_router.routing.table import GatedPlan, Kind, Table
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
        plan, missing = self._plan(kind, name)
        fit: Sequence[Load] = ()
        if plan is not None:
            outlook = plan.pool.outlook(now_s)
            fit = [load for load in plan.loads if load in outlook.fit]
        subject = Subject(
            question=question,
            policy=route or self._table.default,
            plan=plan,
            fit=fit,
            call_kind=self._call_kind(question),
            now_s=now_s,
        )
        refused = [] if missing is None else [Refused(when="every call now", error=missing)]
        candidates = tuple(self._candidates(subject))
        gates: tuple[GateView, ...] = ()
        budget = None
        if plan is not None:
            gates = tuple(_gates(plan, question, now_s))
            budget = _budget(plan)
            refused += _at_the_gate(plan, subject)
            if candidates[0].panic:
                refused.append(Refused(when="where none can be reached", error=_out_of_reach(plan)))
        return Explanation(
            kind=kind,
            name=name,
            matched=_matched(kind, name, by_default=route is None),
            by_default=route is None,
            verdict=_verdict(plan, candidates[0], gates, refused, missing),
            lines=lines(subject, default=self._table.default),
            candidates=candidates,
            gates=gates,
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

    def _candidates(self, subject: Subject) -> Iterator[Candidate]:
        for found in CANDIDATES:
            for name, role in found(subject):
                yield self._candidate(subject.question.kind, name, role, subject.now_s)

    def _candidate(self, kind: Kind, name: str, role: str, now_s: float) -> Candidate:
        try:
            plan, _ = self._plan(kind, name)
        except errors.NotFoundError:
            plan = None  # Of a further candidate whose servers were never there.
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


def _gates(plan: GatedPlan, question: Question, now_s: float) -> Iterator[GateView]:
    gates = plan.gates
    named: Mapping[str, Gate] = {"calls": gates.unary}
    if gates.stream is not gates.unary:
        named = {"unary calls": gates.unary, "streams": gates.stream}
    for calls, gate in named.items():
        outlook = gate.outlook(priority=question.priority, deadline_s=math.inf, now_s=now_s)
        yield GateView(
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


def _budget(plan: GatedPlan) -> BudgetView:
    budget = plan.budget
    allowed = max(budget.floor, math.ceil(budget.share * budget.active))
    return BudgetView(inflight=budget.active, retrying=budget.retrying, allowed=allowed)


def _at_the_gate(plan: GatedPlan, subject: Subject) -> Iterator[Refused]:
    """Which calls would be told something else than an answer; the asked one first."""
    gate, now_s = plan.gates.unary, subject.now_s
    question = subject.question
    patience_s = subject.policy.timeout_s
    if question.deadline_s is not None:
        patience_s = min(patience_s, question.deadline_s)
    asked = question.priority if question.priority in PRIORITIES else "normal"
    for priority in sorted(PRIORITIES, key=lambda one: one != asked):
        outlook = gate.outlook(priority=priority, deadline_s=now_s + patience_s, now_s=now_s)
        if outlook.refusal is None:
            continue
        whose = "such a call" if priority == asked else f"a call of priority {priority}"
        yield Refused(
            when=f"{whose} now, with {seconds(patience_s)} to its deadline",
            error=error_of(outlook.refusal, plan.name),
            shadow=gate.shadow,
        )
    outlook = gate.outlook(priority=asked, deadline_s=now_s, now_s=now_s)
    soonest_s = outlook.wait_s + gate.answer_s
    reason = None if outlook.refusal is None else outlook.refusal.reason
    if outlook.refusal is not None and reason == "DEADLINE_UNREACHABLE" and soonest_s < patience_s:
        yield Refused(
            when=f"a call with less than {seconds(soonest_s)} to its deadline",
            error=error_of(outlook.refusal, plan.name),
            shadow=gate.shadow,
        )


def _out_of_reach(plan: GatedPlan) -> errors.NoEndpointError:
    kind = "model" if plan.is_model else "service"
    return errors.NoEndpointError(
        f'no endpoint of {kind} "{plan.name}" could be reached: try again shortly',
        retry_after_s=1.0,
        metadata={kind: plan.name},
    )


def _verdict(
    plan: GatedPlan | None,
    candidate: Candidate,
    gates: Sequence[GateView],
    refused: Sequence[Refused],
    missing: errors.AiflowError | None,
) -> str:
    if plan is None or missing is not None:
        return f"refused: {missing}"
    now = next(
        (one for one in refused if one.when.startswith("such a call") and not one.shadow), None
    )
    if now is not None:
        return f"refused: {now.error}"
    ready = sum(one.pickable for one in candidate.endpoints) + candidate.unlisted
    goes = f"goes to one of {ready} endpoints" if ready > 1 else "goes to the one endpoint there is"
    if candidate.panic:
        goes = f"no endpoint is fit: it is tried at any of {ready}"
    if gates[0].limit is not None and gates[0].inflight >= gates[0].limit and not gates[0].shadow:
        wait = f"about {seconds(gates[0].wait_s)}" if gates[0].wait_s else "for its turn"
        return f"waits {wait} behind {gates[0].ahead} others, then {goes}"
    return goes
