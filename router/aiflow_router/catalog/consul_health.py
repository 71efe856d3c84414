"""Whether an endpoint in Consul takes calls, by the checks of it and of its node: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiflow_router.catalog.endpoint import State

# What Consul itself names so.
_SERF = "serfHealth"
_NODE_MAINTENANCE = "_node_maintenance"
_SERVICE_MAINTENANCE = "_service_maintenance:"
_TAKES_CALLS = frozenset({"passing", "warning"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One record of a check.

    Attributes:
        id: of the check.
        status: passing, warning or critical.
        service_id: the instance that is checked; empty where it is the node.
    """

    id: str
    status: str
    service_id: str = ""


def state_of(service_id: str, checks: Iterable[Check]) -> State:
    """The state of the instance `service_id`, by its own checks and those of its node.

    The worst of them counts, except that who is in maintenance leaves by intention, whatever its
    checks say meanwhile; and where the node itself is lost, nothing that was said of it holds.
    """
    own = [check for check in checks if check.service_id in ("", service_id)]
    failing = [check for check in own if check.status not in _TAKES_CALLS]
    if any(check.id == _SERF for check in failing):
        return State.UNREACHABLE
    maintenance = (_NODE_MAINTENANCE, f"{_SERVICE_MAINTENANCE}{service_id}")
    if any(check.id in maintenance for check in failing):
        return State.DRAINING
    return State.UNHEALTHY if failing else State.READY
