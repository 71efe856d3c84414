"""The limits that a call would meet: whose they are, and what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aiflow_router.explaining.explanation import Explanation, LimitView, Question, Refused
from aiflow_router.explaining.policy import seconds
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.exceeded import error_of, said
from aiflow_router.limits.permit import Permit
from aiflow_router.limits.rule import Ask, Rule
from aiflow_router.limits.rules import Rules, asked, holds

# Whose a call is that says no tenant.
_ANYBODY = "anonymous"


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
        waiting: calls that wait, by rule.
    """

    rules: Callable[[], Rules]
    buckets: Buckets
    waiting: Callable[[], Mapping[str, int]]

    async def met(self, told: Explanation, question: Question) -> Explanation:
        """`told`, with the limits that such a call would meet; nothing is taken."""
        asks = self._asks(question)
        if not asks:
            return told
        verdict = await self.buckets.look(asks)
        waiting = self.waiting()
        views = tuple(
            LimitView(
                rule=ask.rule.name,
                says=said(ask.rule),
                bucket=ask.bucket,
                holds=holds(ask.rule),
                remaining=standing.remaining,
                wait_s=standing.wait_s,
                reset_s=standing.reset_s,
                shadow=ask.rule.mode == "shadow",
                waits=ask.rule.wait,
                waiting=waiting.get(ask.rule.name, 0),
                by=verdict.by,
            )
            for ask, standing in zip(asks, verdict.standings, strict=True)
        )
        told = replace(told, limits=views)
        if verdict.granted:
            return told
        error = error_of(Permit(asks=asks, holder="", verdict=verdict))
        short = [view for view in views if view.wait_s and not view.shadow]
        if all(view.waits and view.wait_s < math.inf for view in short):
            wait_s = max(view.wait_s for view in short)
            first = f'waits for the limit "{error.rule}", {seconds(wait_s)} at least'
            return replace(told, verdict=f"{first}; then {told.verdict}")
        refused = Refused(when=f"such a call of {error.subject} now", error=error)
        return replace(told, verdict=f"refused: {error}", refused=(refused, *told.refused))

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
