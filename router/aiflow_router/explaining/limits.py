"""The limits that a call would meet: whose they are, and what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from aiflow_router.explaining.explanation import Explanation, LimitView, Question, Refused
from aiflow_router.explaining.policy import seconds
from aiflow_router.limits.buckets import Buckets, Standing
from aiflow_router.limits.exceeded import error_of, said
from aiflow_router.limits.line import Lines
from aiflow_router.limits.permit import Permit
from aiflow_router.limits.rule import Ask, Away, Rule
from aiflow_router.limits.rules import Rules, asked

# Whose a call is that says no tenant.
_ANYBODY = "anonymous"
# What decides while Redis is away, which each rule says for itself.
_AWAY = frozenset[str](get_args(Away))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Who:
    tenant: str
    department: str
    member: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process lets calls in by.

    Attributes:
        rules: those in force.
        lines: of those that wait.
        clock: that of the lines.
    """

    rules: Callable[[], Rules]
    buckets: Buckets
    lines: Lines
    clock: Callable[[], float]

    async def met(self, told: Explanation, question: Question) -> Explanation:
        """`told`, with the limits that such a call would meet; nothing is taken."""
        asks = self._asks(question)
        if not asks:
            return told
        verdict = await self.buckets.look(asks)
        waiting, by = self.lines.waiting(), verdict.by
        views = tuple(
            self._view(ask, standing, question, waiting=waiting.get(ask.rule.name, 0), by=by)
            for ask, standing in zip(asks, verdict.standings, strict=True)
        )
        told = replace(told, limits=views)
        short = [view for view in views if view.wait_s and not view.shadow]
        if not short:
            return told
        if all(view.waits and view.wait_s < math.inf for view in short):
            longest = max(short, key=lambda view: view.wait_s)
            first = f'waits for the limit "{longest.rule}", {seconds(longest.wait_s)} at least'
            if longest.ahead:
                first += f", behind {longest.ahead} others"
            return replace(told, verdict=f"{first}; then {told.verdict}")
        error = error_of(Permit(asks=asks, holder="", verdict=verdict))
        refused = Refused(when=f"such a call of {error.subject} now", error=error)
        return replace(told, verdict=f"refused: {error}", refused=(refused, *told.refused))

    def _view(
        self, ask: Ask, standing: Standing, question: Question, *, waiting: int, by: str
    ) -> LimitView:
        rule, wait_s, ahead = ask.rule, standing.wait_s, 0
        if rule.wait and rule.mode == "enforce" and wait_s < math.inf:
            line = self.lines.outlook(
                ask,
                standing,
                tenant=question.tenant,
                weight=1.0,
                priority=question.priority,
                now_s=self.clock(),
            )
            wait_s, ahead = max(wait_s, line.wait_s), line.ahead
        return LimitView(
            rule=rule.name,
            says=said(rule),
            bucket=ask.bucket,
            holds=rule.holds,
            remaining=standing.remaining,
            wait_s=wait_s,
            reset_s=standing.reset_s,
            shadow=rule.mode == "shadow",
            waits=rule.wait,
            waiting=waiting,
            ahead=ahead,
            by=rule.away if by in _AWAY else by,
        )

    def _asks(self, question: Question) -> tuple[Ask, ...]:
        who = _Who(
            tenant=question.tenant or _ANYBODY,
            department=question.department,
            member=question.member,
            key=question.key,
        )
        matched = self.rules().matched(who, question.kind, question.name)
        if not matched.varies:
            return matched.asks
        return asked(matched, who, question.name, session=question.session, cost=_cost)


def _cost(rule: Rule) -> float:
    """Of a call that does not say what it costs."""
    return rule.assume or 0.0
