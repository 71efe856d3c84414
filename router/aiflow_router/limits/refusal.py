"""A refusal at a gate, or in a limit's line, in words: what the caller is told.

What Explain says that it would be told is the same.
"""

from __future__ import annotations

from aiflow_router.limits.exceeded import said, span
from aiflow_router.limits.gate import Refusal
from aiflow_router.limits.rule import Ask
from aiflow_sdk import errors


def error_of(refusal: Refusal, name: str) -> errors.AiflowError:
    """What the caller of a call to `name` is told."""
    metadata = {"name": name, "waiting": str(refusal.waiting)}
    if refusal.reason == "DEADLINE_EXCEEDED":
        return too_late(name)
    if refusal.reason == "DEADLINE_UNREACHABLE":
        return errors.DeadlineUnreachableError(
            f'"{name}" is busy: this call would have waited about {span(refusal.wait_s)} and could '
            "not have been answered before its deadline: allow a longer deadline, or call less",
            retry_after_s=-1.0,
            metadata=metadata,
        )
    return errors.OverloadedError(
        f'"{name}" has as many calls as it can take and {refusal.waiting} waiting: try again in '
        f"{span(refusal.retry_after_s)}, or add endpoints",
        retry_after_s=refusal.retry_after_s,
        metadata=metadata,
    )


def too_late(name: str) -> errors.DeadlineExceededError:
    return errors.DeadlineExceededError(
        f'"{name}" is busy: the deadline passed before it was this call\'s turn: allow a longer '
        "one, or raise the `timeout` of its route in the router's aiflow.yaml",
        metadata={"name": name},
    )


def over_limit(refusal: Refusal, ask: Ask) -> errors.AiflowError:
    """What the caller of a call is told that is sent away from the line for `ask`."""
    rule = ask.rule
    metadata = {"rule": rule.name, "subject": ask.bucket, "waiting": str(refusal.waiting)}
    if refusal.reason == "DEADLINE_UNREACHABLE":
        return errors.DeadlineUnreachableError(
            f'over the limit "{rule.name}", {said(rule)}: it would have waited about '
            f"{span(refusal.wait_s)} for its turn, past its deadline: allow a longer deadline, or "
            "call less often",
            retry_after_s=-1.0,
            metadata=metadata,
        )
    return errors.OverloadedError(
        f'over the limit "{rule.name}", {said(rule)}, and {refusal.waiting} calls wait for it '
        f"already: try again in {span(refusal.retry_after_s)}, or call less often",
        retry_after_s=refusal.retry_after_s,
        metadata=metadata,
    )


def over_deadline(ask: Ask) -> errors.DeadlineExceededError:
    """What the caller of a call is told that waited in vain."""
    return errors.DeadlineExceededError(
        f'over the limit "{ask.rule.name}", {said(ask.rule)}: the deadline passed before it was '
        "this call's turn: allow a longer one, or call less often",
        metadata={"rule": ask.rule.name, "subject": ask.bucket},
    )
