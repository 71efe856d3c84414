"""What a failed attempt means: the backend's own status, or something the router has to explain.

A backend's own status passes through unchanged. A status that the router's own gRPC library made
up, because the connection broke or a limit of the router was hit, is turned into an error that says
so: without that a caller could not tell the two apart.
"""

from __future__ import annotations

import re

import grpc
import grpc.aio

from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.deadline import passed
from aiflow_router.forwarding.retry import MAX_PUSHBACK_S
from aiflow_sdk import errors, status

# Words of gRPC's own for a connection that broke under a call.
_TRANSPORT = re.compile(
    r"socket closed|connection reset|broken pipe|stream removed|goaway|keepalive|recvmsg",
    re.IGNORECASE,
)


def reads_like_transport(failure: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC may have made this status up because the connection broke."""
    return not has_details(failure) and bool(_TRANSPORT.search(failure.details() or ""))


def has_details(failure: grpc.aio.AioRpcError) -> bool:
    return any(name == status.DETAILS_KEY for name, _ in failure.trailing_metadata() or ())


def is_late(failure: grpc.aio.AioRpcError, *, due_s: float, now_s: float) -> bool:
    """Whether this is the transport's word that the time until `due_s` is over."""
    return (
        failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        and passed(due_s, now_s=now_s)
        and not has_details(failure)
    )


def outcome(failure: grpc.aio.AioRpcError, call: Call, *, now_s: float) -> str:
    """What an attempt came to: the status, but ROUTE_TIMEOUT where the router's own time was up."""
    if call.timed_here and is_late(failure, due_s=call.deadline_s, now_s=now_s):
        return "ROUTE_TIMEOUT"
    return failure.code().name


def pushback_s(failure: grpc.aio.AioRpcError) -> float | None:
    """How long the backend asks to wait before a retry; negative: not in here; None: it did not.

    As gRFC A6 says, what is no number forbids retries. So does a pause of over MAX_PUSHBACK_S,
    which is the caller's to wait.
    """
    for name, value in failure.trailing_metadata() or ():
        if name == status.PUSHBACK_KEY:
            milliseconds = str(value)
            if not milliseconds.isascii() or not milliseconds.isdigit() or len(milliseconds) > 9:
                return -1.0
            pause_s = int(milliseconds) / 1000
            return pause_s if pause_s <= MAX_PUSHBACK_S else -1.0
    return None


def explained(
    failure: grpc.aio.AioRpcError, call: Call, *, lost: bool, now_s: float, limit_bytes: int
) -> Exception:
    """What to raise for an attempt that failed and is not repeated.

    `lost` says that the connection broke; `limit_bytes` is the router's limit on a message.
    """
    code = failure.code()
    if has_details(failure):
        return failure
    if is_late(failure, due_s=call.deadline_s, now_s=now_s):
        return deadline_exceeded(call)
    if code is grpc.StatusCode.UNAVAILABLE and lost:
        return errors.UnavailableError(
            f"the connection to {call.served_by()} was lost before it answered; it may have "
            "processed the request, so the router did not repeat it: repeat it if that is safe",
            reason="BACKEND_LOST",
            retry_after_s=0.1,
            metadata={"endpoint": call.served_by()},
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and status.from_rpc_error(failure).reason == (
        errors.MessageTooLargeError.default_reason
    ):
        return too_large("the answer", None, limit_bytes=limit_bytes)
    return failure


def deadline_exceeded(call: Call) -> errors.DeadlineExceededError:
    where = f" from {call.served_by()}" if call.load is not None else ""
    return errors.DeadlineExceededError(
        f'no answer{where} to "{call.plan.name}" in time: allow a longer deadline, or raise the '
        "`timeout` of its route in the router's aiflow.yaml",
        metadata={"endpoint": call.served_by()},
    )


def no_endpoint(call: Call) -> errors.NoEndpointError:
    kind = "model" if call.plan.is_model else "service"
    return errors.NoEndpointError(
        f'no endpoint of {kind} "{call.plan.name}" could be reached '
        f"({call.attempts} tried, last {call.served_by()}): try again shortly",
        retry_after_s=1.0,
        metadata={kind: call.plan.name},
    )


def unheard_of_status(call: Call, failure: KeyError) -> errors.BackendError:
    """For a status code that grpc.aio has no name for: a backend may send any number."""
    return errors.BackendError(
        f"{call.served_by()} ended the call with a status code that gRPC does not have "
        f"({failure}): see what answers there",
        code="UNKNOWN",
        reason="BACKEND_STATUS",
        metadata={"endpoint": call.served_by()},
    )


def stream_broken(call: Call) -> errors.StreamBrokenError:
    return errors.StreamBrokenError(
        f"{call.served_by()} was lost in the middle of the stream; what was sent so far is valid "
        "but incomplete: start the call again",
        metadata={"endpoint": call.served_by()},
    )


def too_large(
    what: str, size_bytes: int | None, *, limit_bytes: int
) -> errors.MessageTooLargeError:
    size = "" if size_bytes is None else f" of {size_bytes} bytes"
    return errors.MessageTooLargeError(
        f"{what}{size} is over the router's limit of {limit_bytes} bytes for one message: send "
        "less at a time, or raise `listen.max_message_mb` in the router's aiflow.yaml",
        metadata={"limit_bytes": str(limit_bytes)},
    )
