"""One call as a plan, without I/O: what to send along, how long, and whether to repeat it.

The sync and the asyncio client carry the same plan out; everything they decide is decided here.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import grpc
import tenacity
from google.protobuf import descriptor_pb2, descriptor_pool

from aiflow_sdk import status
from aiflow_sdk._settings import Settings, checked_timeout
from aiflow_sdk.errors import (
    AiflowError,
    BadInputError,
    CallCancelledError,
    DeadlineExceededError,
    UnavailableError,
)

T = TypeVar("T")
Pair = tuple[str, str | bytes]
Priority = Literal["high", "normal", "low"]

UNREACHABLE = "ROUTER_UNREACHABLE"

# The call was turned away before anything was done for it, so even an unsafe one may be repeated.
_NOTHING_DONE = frozenset({"NO_ENDPOINT", "OVERLOADED", "DRAINING", UNREACHABLE})

# gRPC's own words where no connection could be made, so that the request never left.
_NOT_SENT = re.compile(
    r"failed to connect to (all|remote)|connection refused|(DNS|address) resolution failed"
    r"|DNS query cancelled|tcp handshaker shutdown",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[T]):
    """An answer and how it came about."""

    message: T
    served_by: str
    """Who answered, as name@address; empty where no router was in between."""
    attempts: int
    """Attempts that this client made; the router's own are in `router_attempts`."""
    router_attempts: int
    """Endpoints the router tried in the last attempt; 0 where it does not say."""
    fallback: str
    """Why another model than the one asked for answered; empty where none did."""
    request_id: str
    elapsed_ms: float
    """From the start of the call, waits and repetitions included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one call sends along and how it is carried through."""

    method: str
    """"/package.Service/Method"."""
    settings: Settings
    safe: bool
    """The call may be repeated whatever became of the first attempt."""
    timeout_s: float
    metadata: tuple[Pair, ...]
    request_id: str
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(default_factory=time.monotonic)

    def remaining_s(self) -> float:
        """Time left for the next attempt; raises DeadlineExceededError where there is none."""
        left_s = self.started_s + self.timeout_s - self.clock()
        if left_s <= 0:
            raise self._late()
        return left_s

    def error(self, failed: grpc.RpcError) -> AiflowError:
        """The typed error of a failed attempt, with this call's id and what to do next."""
        error = status.from_rpc_error(failed)
        if not (error.request_id or error.metadata):  # gRPC's own words, not a server's
            error = self._explained(error)
        error.request_id = error.request_id or self.request_id
        return error

    def send(self, begin: Callable[..., Any], requests: Any, options: Mapping[str, Any]) -> Any:
        """Starts an attempt: `begin` is a multi-callable of either gRPC API."""
        timeout_s = self.remaining_s()
        try:
            return begin(requests, timeout=timeout_s, metadata=self.metadata, **options)
        except (ValueError, grpc.aio.UsageError) as error:
            if "closed" in str(error).lower():
                raise CallCancelledError("the client is closed") from None
            raise BadInputError(f"gRPC refuses the call: {error}") from error

    def reply(self, message: T, *, metadata: Iterable[Pair], attempts: int) -> Reply[T]:
        """Args: metadata: initial and trailing metadata of the attempt that succeeded."""
        found = {key: value for key, value in metadata if isinstance(value, str)}
        tried = found.get("x-aiflow-attempts", "")
        return Reply(
            message=message,
            served_by=found.get("x-aiflow-served-by", ""),
            attempts=attempts,
            router_attempts=int(tried) if tried.isdigit() else 0,
            fallback=found.get("x-aiflow-fallback", ""),
            request_id=found.get(status.REQUEST_ID_KEY, self.request_id),
            elapsed_ms=(self.clock() - self.started_s) * 1000,
        )

    def retrying(self, *, sleep: Callable[[float], None] = time.sleep) -> tenacity.Retrying:
        return tenacity.Retrying(sleep=sleep, reraise=True, **self._policy())

    def async_retrying(self) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(reraise=True, **self._policy())

    def _policy(self) -> dict[str, Any]:
        retry = self.settings.retry
        backoff = tenacity.wait_random_exponential(
            multiplier=retry.min_wait_s, max=retry.max_wait_s
        )

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after_s if isinstance(error, AiflowError) else None
            return backoff(state) if asked is None else asked

        def given_up(state: tenacity.RetryCallState) -> bool:
            left_s = self.started_s + self.timeout_s - self.clock()
            return state.attempt_number >= retry.attempts or state.upcoming_sleep >= left_s

        return {
            "retry": tenacity.retry_if_exception(lambda e: may_repeat(e, safe=self.safe)),
            "wait": wait_s,
            "stop": given_up,
        }

    def _explained(self, error: AiflowError) -> AiflowError:
        router = self.settings.router
        if isinstance(error, DeadlineExceededError):
            return self._late()
        if isinstance(error, UnavailableError) and _NOT_SENT.search(error.message):
            return UnavailableError(
                f"cannot reach the router at {router} ({_cause(error.message)}): start one with "
                "`aiflow up`, or say where it is with AIFLOW_ROUTER or --router",
                reason=UNREACHABLE,
                retry_after_s=error.retry_after_s,
            )
        if isinstance(error, CallCancelledError):
            error.message = error.message or "the call was cancelled"
        return error

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"no answer to {self.method.rpartition('/')[2]} from {self.settings.router} within "
            f"{self.timeout_s:g} s; give it more time with timeout_s",
            request_id=self.request_id,
        )


def may_repeat(error: BaseException, *, safe: bool) -> bool:
    """Whether a failed call may be sent again.

    Only UNAVAILABLE, never against push-back, and an unsafe call only where nothing was done.
    """
    if not isinstance(error, AiflowError) or error.code != "UNAVAILABLE":
        return False
    if error.retry_after_s is not None and error.retry_after_s < 0:
        return False
    return safe or error.reason in _NOTHING_DONE


def new_plan(
    settings: Settings,
    method: str,
    *,
    timeout_s: float | None = None,
    metadata: Iterable[Pair] = (),
    safe: bool = False,
) -> Plan:
    """A plan that starts now. `metadata` wins over what the client adds by itself."""
    given = [(key.lower(), value) for key, value in metadata]
    names = {key for key, _ in given}
    request_id = next(
        (v for k, v in given if k == status.REQUEST_ID_KEY and isinstance(v, str)), ""
    )
    if not request_id:
        request_id = uuid.uuid4().hex
        given.append((status.REQUEST_ID_KEY, request_id))
    if settings.api_key and not names & {"authorization", "x-api-key"}:
        given.append(("authorization", f"Bearer {settings.api_key}"))
    return Plan(
        method=method,
        settings=settings,
        safe=safe or marked_idempotent(method),
        timeout_s=settings.timeout_s if timeout_s is None else checked_timeout(timeout_s),
        metadata=tuple(given),
        request_id=request_id,
    )


def call_metadata(
    *, request_id: str | None, session: str | None, priority: Priority | None
) -> list[Pair]:
    """Metadata of the options of one call."""
    options: Mapping[str, str | None] = {
        status.REQUEST_ID_KEY: request_id,
        "x-aiflow-session": session,
        "x-aiflow-priority": priority,
    }
    for name, value in options.items():
        if value is not None and not (value and value.isascii() and value.isprintable()):
            raise BadInputError(f"{name} {value!r}: printable ASCII characters are needed")
    return [(name, value) for name, value in options.items() if value is not None]


def marked_idempotent(method: str) -> bool:
    """Whether the method's proto says `option idempotency_level`, where this process knows it."""
    try:
        found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    except KeyError:
        return False
    level = found.GetOptions().idempotency_level
    return level != descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN


def _cause(message: str) -> str:
    """The last part of gRPC's nested connection error, such as "Connection refused"."""
    for known in ("Connection refused", "Connection timed out", "No route to host", "resolution"):
        if known.lower() in message.lower():
            return "its name does not resolve" if known == "resolution" else known.lower()
    return message.rsplit("last error: ", 1)[-1]
