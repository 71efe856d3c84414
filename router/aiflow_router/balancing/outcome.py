"""What the outcome of an attempt says about its endpoint."""

from __future__ import annotations

# The endpoint's fault, for ejection and for answer times alike. Not all are gRPC's status codes:
# UNREACHABLE says that no connection could be made, PER_TRY_TIMEOUT and ROUTE_TIMEOUT that the
# router's own time for a try or a call was over. DEADLINE_EXCEEDED is the caller's hurry.
FAULTS = frozenset(
    {
        *("UNREACHABLE", "UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS"),
        *("PER_TRY_TIMEOUT", "ROUTE_TIMEOUT"),
    }
)
# Says nothing of the endpoint, good or bad. Anything in neither set is an answer: it works.
UNCOUNTED = frozenset(
    {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "CANCELLED", "DEADLINE_EXCEEDED", "REFUSED"}
)
