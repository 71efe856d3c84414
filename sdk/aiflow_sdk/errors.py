"""What can go wrong with a call, as exceptions: raised by servers, caught by callers.

    AiflowError                     any of them
    ├── BadInputError               the request is wrong; fix it, do not repeat it
    │   └── MessageTooLargeError    a message is over the size limit
    ├── NotFoundError               a name that nothing answers to
    │   ├── ModelNotFoundError
    │   └── ServiceNotFoundError
    ├── AlreadyExistsError          what was to be made is there
    ├── AuthenticationError         no key, or one that is not known
    ├── PermissionDeniedError       a known key without the right
    ├── RateLimitedError            over a limit or a quota: `rule` says which
    ├── RefusedError                the request is understood and will not be served as it is
    ├── UnavailableError            try again after `retry_after_s`
    │   ├── NoEndpointError         nothing serves the model or service right now
    │   ├── OverloadedError         too many calls; this one was not begun
    │   ├── DeadlineUnreachableError    its turn would come too late; not begun, do not repeat
    │   └── DrainingError           this server is shutting down
    ├── DeadlineExceededError
    ├── CallCancelledError
    ├── StreamBrokenError           the backend died in the middle of a stream
    └── BackendError                any other failure, the backend's own status unchanged

Nothing here knows gRPC; `aiflow_sdk.status` maps these to a status and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AiflowError(Exception):
    """A call that failed.

    Attributes:
        code: name of the gRPC status code, such as "UNAVAILABLE".
        reason: stable UPPER_SNAKE name of the cause, such as "NO_ENDPOINT".
        message: what happened and what to do next, for a person.
        retry_after_s: seconds after which a repetition may succeed; negative where repeating
            is forbidden (push-back); None where nothing is known.
        violations: for bad input, what is wrong by field.
        metadata: further facts by name, such as the model asked for.
        request_id: the call's id, as the logs of the router and the servers have it.
    """

    default_code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "BACKEND_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        retry_after_s: float | None = None,
        violations: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason or self.default_reason
        self.retry_after_s = retry_after_s
        self.violations = dict(violations or {})
        self.metadata = dict(metadata or {})
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}/{self.reason}: {self.message}"


class BadInputError(AiflowError):
    default_code = "INVALID_ARGUMENT"
    default_reason = "BAD_INPUT"


class MessageTooLargeError(BadInputError):
    default_code = "RESOURCE_EXHAUSTED"  # what gRPC itself answers, see its status code page
    default_reason = "MESSAGE_TOO_LARGE"


class NotFoundError(AiflowError):
    default_code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    default_reason = "MODEL_NOT_FOUND"


class ServiceNotFoundError(NotFoundError):
    default_code = "UNIMPLEMENTED"
    default_reason = "SERVICE_NOT_FOUND"


class AlreadyExistsError(AiflowError):
    default_code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class AuthenticationError(AiflowError):
    default_code = "UNAUTHENTICATED"
    default_reason = "KEY_INVALID"


class PermissionDeniedError(AiflowError):
    default_code = "PERMISSION_DENIED"
    default_reason = "MODEL_FORBIDDEN"


class RateLimitedError(AiflowError):
    default_code = "RESOURCE_EXHAUSTED"
    default_reason = "RATE_LIMITED"

    @property
    def rule(self) -> str:
        """The rule that the call is over; empty where none was named."""
        return self.metadata.get("rule", "")

    @property
    def subject(self) -> str:
        """Whose rule: "gpt|acme", or the account that is empty."""
        return self.metadata.get("subject", "")


class RefusedError(AiflowError):
    default_code = "FAILED_PRECONDITION"
    default_reason = "REFUSED"


class UnavailableError(AiflowError):
    default_code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class NoEndpointError(UnavailableError):
    default_reason = "NO_ENDPOINT"


class OverloadedError(UnavailableError):
    default_reason = "OVERLOADED"


class DeadlineUnreachableError(UnavailableError):
    default_reason = "DEADLINE_UNREACHABLE"


class DrainingError(UnavailableError):
    default_reason = "DRAINING"


class DeadlineExceededError(AiflowError):
    default_code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class CallCancelledError(AiflowError):
    default_code = "CANCELLED"
    default_reason = "CANCELLED"


class StreamBrokenError(AiflowError):
    default_code = "ABORTED"
    default_reason = "STREAM_BROKEN"


class BackendError(AiflowError):
    pass
