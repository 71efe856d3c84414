"""The one place where AIFlow's errors and gRPC statuses are turned into each other.

A failed call carries one `google.rpc.Status` in the trailer `grpc-status-details-bin`, always with
an ErrorInfo (domain "aiflow"), and where they apply a BadRequest, a QuotaFailure and a RetryInfo.
Callers in other languages read the same details with their own gRPC library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from aiflow_sdk import errors

DOMAIN = "aiflow"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
NEVER_S = -1.0  # `retry_after_s` of a call that must not be repeated

Metadata = Sequence[tuple[str, str | bytes]]

_CLASS_BY_REASON: dict[str, type[errors.AiflowError]] = {
    cls.default_reason: cls
    for cls in (
        errors.BadInputError,
        errors.MessageTooLargeError,
        errors.ModelNotFoundError,
        errors.ServiceNotFoundError,
        errors.NoEndpointError,
        errors.OverloadedError,
        errors.DeadlineUnreachableError,
        errors.DrainingError,
        errors.StreamBrokenError,
    )
}

# Used where there is no reason of ours, or one that has no class of its own.
_CLASS_BY_CODE: dict[str, type[errors.AiflowError]] = {
    "INVALID_ARGUMENT": errors.BadInputError,
    "OUT_OF_RANGE": errors.BadInputError,
    "NOT_FOUND": errors.NotFoundError,
    "UNIMPLEMENTED": errors.ServiceNotFoundError,
    "ALREADY_EXISTS": errors.AlreadyExistsError,
    "UNAUTHENTICATED": errors.AuthenticationError,
    "PERMISSION_DENIED": errors.PermissionDeniedError,
    "RESOURCE_EXHAUSTED": errors.RateLimitedError,
    "FAILED_PRECONDITION": errors.RefusedError,
    "UNAVAILABLE": errors.UnavailableError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "CANCELLED": errors.CallCancelledError,
}

_DIGITS = re.compile(r"[0-9]{1,10}")

# gRPC's own words for a message over the limit, on either side; it sends no details with them.
_TOO_LARGE = re.compile(r"(sent|received) message larger than max", re.IGNORECASE)


def status_code(error: errors.AiflowError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def to_status(error: errors.AiflowError) -> status_pb2.Status:
    """The status that says `error`, with its details."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata)
    )
    status = status_pb2.Status(code=status_code(error).value[0], message=error.message)
    status.details.append(_packed(info))
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for field, description in error.violations.items():
            bad.field_violations.add(field=field, description=description)
        status.details.append(_packed(bad))
    if isinstance(error, errors.RateLimitedError) and error.subject:
        over = error_details_pb2.QuotaFailure()
        over.violations.add(subject=error.subject, description=error.message)
        status.details.append(_packed(over))
    if error.retry_after_s is not None and error.retry_after_s >= 0:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def to_trailers(error: errors.AiflowError) -> Metadata:
    """Trailing metadata that says `error`: the details, and push-back that gRPC clients obey."""
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, to_status(error).SerializeToString())]
    if error.retry_after_s is None:
        return trailers
    if error.retry_after_s < 0:
        return [*trailers, (PUSHBACK_KEY, "-1")]
    trailers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    trailers.append((PUSHBACK_KEY, str(round(error.retry_after_s * 1000))))
    return trailers


def from_parts(
    *, code: str, message: str, trailers: Iterable[tuple[str, str | bytes]]
) -> errors.AiflowError:
    """The error that a finished call's status says.

    Args:
        code: name of the status code, such as "UNAVAILABLE".
        message: the status message.
        trailers: trailing metadata, as gRPC gives it.
    """
    found = dict(trailers)
    reason, retry_after_s = "", None
    metadata: dict[str, str] = {}
    violations: dict[str, str] = {}
    details = found.get(DETAILS_KEY)
    if isinstance(details, bytes):
        for packed in _unpacked(details):
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            over = error_details_pb2.QuotaFailure()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif packed.Unpack(bad):
                violations = {v.field: v.description for v in bad.field_violations}
            elif packed.Unpack(over):
                # Another server than a router of ours has no rule by name.
                for violation in over.violations:
                    metadata.setdefault("subject", violation.subject)
            elif packed.Unpack(retry):
                retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    pushback = found.get(PUSHBACK_KEY)
    if isinstance(pushback, str):
        # As gRFC A6 says: negative, or not a number, means never.
        retry_after_s = int(pushback) / 1000 if _DIGITS.fullmatch(pushback) else NEVER_S
    if not reason and code == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(message):
        reason = errors.MessageTooLargeError.default_reason
    cls = _CLASS_BY_REASON.get(reason) or _CLASS_BY_CODE.get(code, errors.BackendError)
    request_id = found.get(REQUEST_ID_KEY, "")
    return cls(
        message,
        code=code,
        reason=reason,
        retry_after_s=retry_after_s,
        violations=violations,
        metadata=metadata,
        request_id=request_id if isinstance(request_id, str) else "",
    )


def from_rpc_error(error: grpc.RpcError) -> errors.AiflowError:
    """The typed error of a call that failed, from the sync or the asyncio API."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return errors.BackendError(str(error))
    return from_parts(
        code=error.code().name,
        message=error.details() or "",
        trailers=[(key, value) for key, value in error.trailing_metadata() or ()],
    )


def _unpacked(details: bytes) -> Sequence[any_pb2.Any]:
    try:
        return list(status_pb2.Status.FromString(details).details)
    except DecodeError:
        return ()  # a foreign server's trailer; code and message still say what happened


def _packed(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.QuotaFailure
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
