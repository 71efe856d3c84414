"""Fallback: to whom a call goes on when a model fails it, and why.

    detector --unavailable--> detector-lite --overload--> vendor/detect
      GPU                       CPU                          far away

A condition is read off the error alone, so that bad input, refused content, an unknown name, a
caller over its limit and a caller who left never match any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Condition = Literal["no_endpoint", "unavailable", "deadline_share", "overload", "pool_exhausted"]

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
# What UNAVAILABLE means by its reason; by any other, and by none, that the model is unavailable.
_BY_REASON: Mapping[str, Condition] = {
    "NO_ENDPOINT": "no_endpoint",
    "OVERLOADED": "overload",
    "DEADLINE_UNREACHABLE": "overload",
    "POOL_EXHAUSTED": "pool_exhausted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A route's.

    Attributes:
        to: models, in the order in which they are asked.
        on: what sends a call on.
        deadline_share: of the call's time, what all candidates but the last may use together; None:
            each may use what is left.
        shadow: only counted.
    """

    to: tuple[str, ...]
    on: frozenset[Condition]
    deadline_share: float | None = None
    shadow: bool = False

    def met(self, code: str, reason: str, *, early: bool) -> Condition | None:
        """What of `on` a failure means; None where it is the caller's to know.

        `early` says that the candidate had less time than the call.
        """
        found = condition(code, reason, early=early)
        if reason == "DEADLINE_UNREACHABLE" and early and found not in self.on:
            found = "deadline_share"  # By estimate it would be used up.
        return found if found in self.on else None


def condition(code: str, reason: str, *, early: bool) -> Condition | None:
    """Which condition an error is, whoever raised it: the router, or a backend."""
    if code == "UNAVAILABLE":
        return _BY_REASON.get(reason, "unavailable")
    if code == "DEADLINE_EXCEEDED" and early:
        return "deadline_share"
    return None


def due_s(
    *, now_s: float, started_s: float, deadline_s: float, share: float | None, followers: int
) -> float:
    """When the candidate that starts now must have answered.

    All candidates but the last have `share` of the call's time together. What is left of it is
    parted evenly among those still to come, so one that fails at once leaves its part to the next;
    the last one has what is left of the whole.

    Args:
        now_s: as all times here, on one clock.
        started_s: when the first candidate began.
        deadline_s: of the whole call.
        share: None where each has all the time that is left.
        followers: how many candidates that can be asked come after this one.
    """
    if share is None or followers == 0:
        return deadline_s
    shared_until_s = started_s + share * (deadline_s - started_s)
    return now_s + max(0.0, shared_until_s - now_s) / followers
