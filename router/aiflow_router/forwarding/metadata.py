"""What of a call's metadata goes on, in either direction; one pass, on plain pairs.

Dropped on the way in: keys (they are the router's business and no backend's), what belongs to one
hop, and `x-aiflow-*` that a caller may not set. Dropped on the way back: what belongs to one hop,
and the names under which the router itself answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from aiflow_sdk import errors

Pair = tuple[str, str | bytes]
Pairs = tuple[Pair, ...]

REQUEST_ID = "x-request-id"
SERVED_BY = "x-aiflow-served-by"
ATTEMPTS = "x-aiflow-attempts"
POLICY_VERSION = "x-aiflow-policy-version"
FALLBACK = "x-aiflow-fallback"
SESSION = "x-aiflow-session"
PRIORITY = "x-aiflow-priority"
CACHE = "x-aiflow-cache"
CACHE_AGE = "x-aiflow-cache-age"
# What a call asks for, from its caller; and what it took, from the backend and on to the caller.
UNITS = "x-aiflow-units"
USED = "x-aiflow-used"
# To the caller: what the call has paid.
CREDITS = "x-aiflow-credits"
# To the caller: which it was in the line of a limit, and for how many seconds it was to wait.
QUEUE_POSITION = "x-aiflow-queue-position"
QUEUE_ESTIMATE = "x-aiflow-queue-estimate"
# To a backend: the call is a copy, and nobody waits for its answer.
SHADOW = "x-aiflow-shadow"

_MAY_SET = frozenset({PRIORITY, SESSION, CACHE, UNITS})
_ONE_HOP = frozenset(
    {
        *("connection", "content-type", "host", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "user-agent"),
    }
)
# Of gRPC's reserved names the ones that travel from end to end.
_END_TO_END = frozenset({"grpc-trace-bin", "grpc-tags-bin"})
_END_TO_END_BACK = frozenset(
    {"grpc-status-details-bin", "grpc-retry-pushback-ms", "grpc-server-stats-bin"}
)
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


# Not frozen, for one is made of each call, which would take three times as long.
@dataclass(slots=True, kw_only=True, eq=False)
class Head:
    """What the router reads of a call's metadata.

    Attributes:
        key: the API key as it was sent; empty when there is none.
        request_id: the caller's where it is sane, else a new one.
        trace_id: of the caller's W3C trace context; empty when there is none.
        onward: what goes on to the backend.
    """

    key: str
    request_id: str
    trace_id: str
    onward: Pairs


def read_head(metadata: Iterable[Pair]) -> Head:  # noqa: C901 - one pass over every call
    """Raises BadInputError for a value that gRPC would not send on."""
    key = request_id = trace_id = ""
    onward: list[Pair] = []
    for pair in metadata:
        name, value = pair
        if name in _ONE_HOP:
            continue
        first = name[:1]  # What is no name at all is refused below the router, but seen here.
        if first == "x":
            if name == "x-api-key":
                key = str(value)
                continue
            if name == REQUEST_ID:
                if isinstance(value, str) and _SANE_ID.fullmatch(value):
                    request_id = value
                continue
            if name.startswith("x-aiflow-") and name not in _MAY_SET:
                continue
        elif first == "a" and name == "authorization":
            scheme, _, rest = str(value).partition(" ")
            # Anything but a bearer key is refused as unknown, and passed on just as little.
            key = rest.strip() if scheme.lower() == "bearer" else str(value)
            continue
        elif first == "g" and name.startswith("grpc-") and name not in _END_TO_END:
            continue
        elif first == "t" and name == "traceparent":
            match = _TRACEPARENT.fullmatch(str(value))
            trace_id = match[1] if match else ""
        if not _travels(value):
            raise _not_text(name)
        onward.append((name, value))
    request_id = request_id or f"{random.getrandbits(64):016x}"
    onward.append((REQUEST_ID, request_id))
    return Head(key=key, request_id=request_id, trace_id=trace_id, onward=tuple(onward))


def _travels(value: str | bytes) -> bool:
    """Whether gRPC sends this value; it takes others from the wire, and a call with one hangs."""
    return type(value) is bytes or (value.isascii() and value.isprintable())  # type: ignore[union-attr]


def _not_text(name: str) -> errors.BadInputError:
    return errors.BadInputError(
        f'the value of metadata "{name}" is not printable ASCII, which is all that gRPC carries '
        "under such a name: let the name end in -bin and send bytes, or encode the text",
        violations={name: "must be printable ASCII"},
    )


def back(metadata: Iterable[Pair]) -> list[Pair]:
    """What of a backend's initial or trailing metadata goes back to the caller.

    A value that gRPC cannot send is left out: the answer is worth more than a note beside it.
    """
    return [
        (name, value)
        for name, value in metadata
        if name not in _ONE_HOP
        and name != REQUEST_ID
        and (not name.startswith("x-aiflow-") or name == USED)
        and (not name.startswith("grpc-") or name in _END_TO_END_BACK)
        and _travels(value)
    ]
