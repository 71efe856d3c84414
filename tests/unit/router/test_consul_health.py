"""What the checks in Consul say of an endpoint; the names of the rows are the rules."""

import pytest

from aiflow_router.catalog.consul import doubtful
from aiflow_router.catalog.consul_health import Check, state_of
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.snapshot import Entry

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


def entry(state: State | None) -> Entry | None:
    if state is None:
        return None
    endpoint = Endpoint(backend="b", address="h:1", protocol=Protocol.OIP, models=("m",))
    return Entry(endpoint=endpoint, state=state)


@pytest.mark.parametrize(
    ("shown", "told", "expected"),
    [
        pytest.param(State.READY, None, True, id="who took calls is not listed any more"),
        pytest.param(State.READY, State.UNHEALTHY, True, id="the checks of who took calls fail"),
        pytest.param(State.READY, State.UNREACHABLE, True, id="its node is lost"),
        pytest.param(State.READY, State.DRAINING, False, id="it leaves by its own will"),
        pytest.param(State.READY, State.READY, False, id="it still takes calls"),
        pytest.param(State.DRAINING, None, False, id="who was leaving has left"),
        pytest.param(State.UNHEALTHY, None, False, id="who was not fit is gone"),
        pytest.param(None, State.UNHEALTHY, False, id="who is new and not fit"),
    ],
)
def test_bad_news_that_may_be_consuls_own_trouble(
    shown: State | None, told: State | None, expected: bool
) -> None:
    assert doubtful(entry(shown), entry(told)) is expected
