"""A refusal at a gate in words: what the caller is told, and what Explain says it would be told."""

from __future__ import annotations

from aiflow_router.limits.gate import Refusal
from aiflow_sdk import errors


def error_of(refusal: Refusal, name: str) -> errors.AiflowError:
    """What the caller of a call to `name` is told."""
    metadata = {"name": name, "waiting": str(refusal.waiting)}
    if refusal.reason == "DEADLINE_EXCEEDED":
        return too_late(name)
    if refusal.reason == "DEADLINE_UNREACHABLE":
        return errors.DeadlineUnreachableError(
            f'"{name}" is busy: this call would have waited about {refusal.wait_s:.2g} s and could '
            "not have been answered before its deadline: allow a longer deadline, or call less",
            retry_after_s=-1.0,
            metadata=metadata,
        )
    return errors.OverloadedError(
        f'"{name}" has as many calls as it can take and {refusal.waiting} waiting: try again in '
        f"{refusal.retry_after_s:.2g} s, or add endpoints",
        retry_after_s=refusal.retry_after_s,
        metadata=metadata,
    )


def too_late(name: str) -> errors.DeadlineExceededError:
    return errors.DeadlineExceededError(
        f'"{name}" is busy: the deadline passed before it was this call\'s turn: allow a longer '
        "one, or raise the `timeout` of its route in the router's aiflow.yaml",
        metadata={"name": name},
    )
