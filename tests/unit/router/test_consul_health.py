"""What the checks in Consul say of an endpoint; the names of the rows are the rules."""

import pytest

from aiflow_router.catalog.consul_health import Check, state_of
from aiflow_router.catalog.endpoint import State

ME = "echo@127.0.0.1:9001"


def node(check_id: str, status: str) -> Check:
    return Check(id=check_id, status=status)


def mine(check_id: str, status: str) -> Check:
    return Check(id=check_id, status=status, service_id=ME)


SERF_WELL = node("serfHealth", "passing")
SERF_LOST = node("serfHealth", "critical")
MAINTENANCE = mine(f"_service_maintenance:{ME}", "critical")


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        pytest.param([], State.READY, id="without any check it takes calls"),
        pytest.param([SERF_WELL], State.READY, id="a node that is well, and no check of its own"),
        pytest.param([SERF_WELL, mine("ttl", "passing")], State.READY, id="all that pass"),
        pytest.param([mine("ttl", "warning")], State.READY, id="a warning is for people"),
        pytest.param([mine("ttl", "critical")], State.UNHEALTHY, id="a critical check"),
        pytest.param(
            [mine("ttl", "passing"), mine("grpc", "critical")],
            State.UNHEALTHY,
            id="one critical check of two is enough",
        ),
        pytest.param(
            [node("disk", "critical"), mine("ttl", "passing")],
            State.UNHEALTHY,
            id="a critical check of its node counts as its own",
        ),
        pytest.param([mine("ttl", "")], State.UNHEALTHY, id="a check that says nothing"),
        pytest.param([mine("ttl", "odd")], State.UNHEALTHY, id="a status nobody knows"),
        pytest.param([SERF_LOST], State.UNREACHABLE, id="a node that gossip has lost"),
        pytest.param(
            [SERF_LOST, mine("ttl", "passing")],
            State.UNREACHABLE,
            id="of a lost node the passing check is old news",
        ),
        pytest.param([MAINTENANCE], State.DRAINING, id="it is in maintenance"),
        pytest.param(
            [mine("ttl", "passing"), MAINTENANCE],
            State.DRAINING,
            id="it is in maintenance and well",
        ),
        pytest.param(
            [mine("ttl", "critical"), MAINTENANCE],
            State.DRAINING,
            id="in maintenance its checks do not matter any more",
        ),
        pytest.param(
            [node("_node_maintenance", "critical"), mine("ttl", "passing")],
            State.DRAINING,
            id="its whole node is in maintenance",
        ),
        pytest.param(
            [SERF_LOST, MAINTENANCE],
            State.UNREACHABLE,
            id="a node that was lost in maintenance is lost",
        ),
        pytest.param(
            [Check(id="ttl", status="critical", service_id="other")],
            State.READY,
            id="a critical check of another instance on the node",
        ),
        pytest.param(
            [Check(id="_service_maintenance:other", status="critical", service_id="other")],
            State.READY,
            id="another instance on the node is in maintenance",
        ),
    ],
)
def test_the_state_of_an_endpoint(checks: list[Check], expected: State) -> None:
    assert state_of(ME, checks) is expected
    assert state_of(ME, reversed(checks)) is expected
