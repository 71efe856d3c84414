"""A call that is over a limit, in words: what its caller is told."""

from __future__ import annotations

import math
from collections.abc import Iterator

from aiflow_router.limits.buckets import NEVER_S, Standing
from aiflow_router.limits.permit import Permit
from aiflow_router.limits.rule import Ask, Rule
from aiflow_sdk import errors

_CALENDAR = {"day": "day", "month": "month"}
_TIMES = {1.0: "s", 60.0: "min", 3600.0: "h"}


def short(permit: Permit) -> Iterator[tuple[Ask, Standing]]:
    """The asks for which there was too little, of rules that decide."""
    for ask, standing in zip(permit.asks, permit.verdict.standings, strict=True):
        if standing.wait_s and ask.rule.mode == "enforce":
            yield ask, standing


def error_of(permit: Permit) -> errors.RateLimitedError:
    """Of a call that was not granted: told is the rule that it would wait for longest."""
    ask, standing = max(short(permit), key=lambda pair: (pair[1].wait_s, _by_calendar(pair[0])))
    rule = ask.rule
    metadata = {"rule": rule.name, "subject": ask.bucket, "by": permit.verdict.by}
    if _by_calendar(ask):
        return errors.RateLimitedError(
            f'the quota "{rule.name}" is used up, {said(rule)}: {standing.remaining:g} are left, '
            f"this call asks for {ask.cost:g}, and it begins anew in {span(standing.reset_s)}: "
            "ask whoever runs the router for more",
            reason="QUOTA_EXCEEDED",
            metadata=metadata,
        )
    if standing.wait_s == NEVER_S and ask.cost > rule.holds:
        return errors.RateLimitedError(
            f'this call asks for {ask.cost:g} {rule.unit} at once, and the limit "{rule.name}" '
            f"never has more than {rule.holds:g}: send less in one call",
            retry_after_s=-1.0,
            metadata=metadata,
        )
    if standing.wait_s == NEVER_S:
        return errors.RateLimitedError(
            f'the limit "{rule.name}", {said(rule)}, lets nothing pass now ({permit.verdict.by})',
            retry_after_s=1.0,
            metadata=metadata,
        )
    return errors.RateLimitedError(
        f'over the limit "{rule.name}", {said(rule)}: try again in {span(standing.wait_s)}, call '
        "less often, or ask whoever runs the router for more",
        retry_after_s=standing.wait_s,
        metadata=metadata,
    )


def said(rule: Rule) -> str:
    """What it allows: "4 calls/min for each tenant"."""
    whose = " and ".join(rule.per)
    each = f" for each {whose}" if whose else " for all together"
    amount = f"{rule.amount:g} {rule.unit}"
    if rule.kind == "concurrency":
        return f"{rule.amount:g} calls at a time{each}"
    if rule.kind in _CALENDAR:
        return f"{amount} a {_CALENDAR[rule.kind]}{each}"
    strictly = ", strictly" if rule.kind == "strict" else ""
    return f"{amount}/{_TIMES.get(rule.period_s, f'{rule.period_s:g} s')}{strictly}{each}"


def _by_calendar(ask: Ask) -> bool:
    return ask.rule.kind in _CALENDAR


def span(value_s: float) -> str:
    """Rounded up from a minute and a half on, for a person: "1.5 s", "30 min", "2 h 5 min"."""
    if value_s < 90:
        return f"{value_s:.2g} s"
    hours, minutes = divmod(math.ceil(value_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
