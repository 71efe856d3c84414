"""One call at the door, whatever it is: who, what, how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio

from aiflow_router.accounts.account import written
from aiflow_router.accounts.bill import Bill
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.metadata import (
    ATTEMPTS,
    CACHE,
    CACHE_AGE,
    CREDITS,
    FALLBACK,
    POLICY_VERSION,
    QUEUE_ESTIMATE,
    QUEUE_POSITION,
    REQUEST_ID,
    SERVED_BY,
    UNITS,
    Head,
    Pair,
    Pairs,
)
from aiflow_router.identity.caller import NOBODY, Caller
from aiflow_router.limits import units
from aiflow_router.limits.gate import Outlook
from aiflow_router.limits.permit import Permit
from aiflow_router.rpc.detour import Detour
from aiflow_router.telemetry.metrics import UNKNOWN

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only
_NO_HEAD = Head(key="", request_id="", trace_id="", onward=())
# Questions about a model.
_READS = frozenset(
    f"/inference.GRPCInferenceService/{name}"
    for name in ("ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics")
)
_NO_POLICY: Pair = (POLICY_VERSION, "")


# The metadata of the call whose handler was asked for in this task. gRPC has it there already as
# Python's values; to ask the context for it makes them once more, for a twentieth of a call's cost.
ARRIVING: ContextVar[Pairs] = ContextVar("arriving")


@dataclass(slots=True, kw_only=True)
class Visit:
    """Filled in as the call proceeds.

    Attributes:
        label: the model or service where the router knows it; a label of metrics.
        asked: the model or service as the caller wrote it; for the log.
        policy: the trailer that tells by which version of the policy it goes.
        quiet: not logged when it ends well.
        queued_s: time it waited for its turn, or for the answer to an equal call.
        cache: what its route's cache did: hit, miss or skip; empty where there is none.
        kept_by: who had given the answer that it got from there, as is `kept_s`, its age.
        detour: what became of it at models that it fell back from; None where there are none.
        line: what it met where it had to wait for a limit; None where it did not.
        permit: what it was let in with, or refused by; None where no limit matches it.
        message_bytes: of a unary call, the request and the answer.
        used: what it took, by unit, as the backend tells.
        bill: what it holds of credits; None where it costs nothing, and once it is paid.
        credits: what it has paid, in micro-credits.
    """

    method: str
    started_s: float
    label: str
    policy: Pair = _NO_POLICY
    asked: str = ""
    quiet: bool = False
    head: Head = _NO_HEAD
    caller: Caller = NOBODY
    call: Call | None = None
    queued_s: float = 0.0
    detour: Detour | None = None
    ended_s: float = 0.0
    code: str = ""
    reason: str = ""
    unary: bool = False
    cache: str = ""
    kept_by: str = ""
    kept_s: float = 0.0
    line: Outlook | None = None
    permit: Permit | None = None
    message_bytes: int = 0
    used: Mapping[str, float] = field(default_factory=lambda: units.NONE)
    bill: Bill | None = None
    credits: int = 0

    @property
    def request_id(self) -> str:
        return self.head.request_id

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    @property
    def trace_id(self) -> str:
        return self.head.trace_id

    @property
    def endpoint(self) -> str:
        return self.kept_by if self.call is None else self.call.served_by()

    @property
    def attempts(self) -> int:
        before = 0 if self.detour is None else self.detour.attempts
        return before if self.call is None else before + self.call.attempts

    @property
    def fallback(self) -> str:
        """Why it fell back, each time that it did."""
        return "" if self.detour is None else ",".join(self.detour.reasons)

    @property
    def sent(self) -> bool:
        """Whether a backend may have begun to work on it."""
        if self.call is not None and self.call.sent:
            return True
        return self.detour is not None and self.detour.attempts > 0

    @property
    def size_bytes(self) -> int:
        """Of all its messages, once it has ended."""
        return self.message_bytes + (0 if self.call is None else self.call.streamed_bytes)

    @property
    def counted(self) -> bool:
        """Whether it asked a model or service to do something, for the usage of its caller."""
        return bool(self.asked) and self.label != UNKNOWN and self.method not in _READS

    @property
    def took(self) -> Mapping[str, float]:
        """What it used, by unit: as the backend tells, else as its caller declared."""
        if self.used or self.code != "OK" or self.cache == "hit":
            return self.used
        said = next((str(value) for name, value in self.head.onward if name == UNITS), "")
        if not said:
            return units.NONE
        try:
            return units.read(said, units.DECLARABLE)
        except ValueError:  # No rule and no price asked for it.
            return units.NONE

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def overhead_s(self) -> float | None:
        """Of a unary call that was passed on; in a stream others' waiting cannot be told apart."""
        if not self.unary or self.call is None:
            return None
        backend_s = self.call.backend_s
        if self.detour is not None:
            backend_s += self.detour.backend_s
        return max(0.0, self.duration_s - backend_s - self.queued_s)

    def trailers(self, metadata: Iterable[Pair] = ()) -> tuple[Pair, ...]:
        if self.permit is not None:
            metadata = (*metadata, *_left(self.permit))
        if self.credits:
            metadata = (*metadata, (CREDITS, written(self.credits)))
        if self.detour is not None:
            metadata = (*metadata, (FALLBACK, self.fallback))
        if self.cache:
            metadata = (*metadata, (CACHE, self.cache))
        if self.call is None:
            if self.kept_by:
                metadata = (*metadata, (CACHE_AGE, str(int(self.kept_s))))
            own = (REQUEST_ID, self.head.request_id), (SERVED_BY, self.kept_by or "router")
            return (*metadata, *own, self.policy)
        return (
            *metadata,
            self.policy,
            (REQUEST_ID, self.head.request_id),
            (SERVED_BY, self.call.served_by()),
            (ATTEMPTS, str(self.attempts)),
        )


def queued(line: Outlook) -> tuple[Pair, Pair]:
    """Where it began to wait, and how long it was to take."""
    return (QUEUE_POSITION, str(line.ahead + 1)), (QUEUE_ESTIMATE, f"{line.wait_s:.3f}")


def _left(permit: Permit) -> Iterable[Pair]:
    """What is left by the rule that is nearest to its limit."""
    tightest = permit.tightest()
    if tightest is None:
        return ()
    most, remaining, reset_s = tightest
    return (
        ("x-ratelimit-limit", str(int(most))),
        ("x-ratelimit-remaining", str(int(remaining))),
        ("x-ratelimit-reset", str(math.ceil(reset_s))),
    )
