"""Answers of Consul, read: what is ours, what is odd, and what is no answer of Consul at all."""

from typing import Any

import pytest

from aiflow_router.catalog.consul_answer import backends, instances
from aiflow_router.catalog.endpoint import State
from aiflow_sdk.consul import ConsulForbiddenError, ConsulRefusedError
from aiflow_sdk.consul_entry import Entry, to_service


def item(*, node: str = "n1", status: str = "passing", **fields: Any) -> dict[str, Any]:
    entry = Entry(
        **{"backend": "b", "address": "h:1", "protocol": "oip", "models": ("m",), **fields}
    )
    service = to_service(entry)
    service["Service"] = service.pop("Name")
    check = {"CheckID": "ttl", "Status": status, "ServiceID": service["ID"]}
    return {"Node": {"Node": node, "Address": "10.0.0.1"}, "Service": service, "Checks": [check]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"consul": []}, set(), id="Consul alone"),
        pytest.param({"consul": [], "a": ["aiflow", "x"], "b": ["x"]}, {"a"}, id="ours by the tag"),
    ],
)
def test_the_list_of_services(body: Any, expected: set[str]) -> None:
    assert backends(body) == expected


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param({}, ConsulForbiddenError, id="nothing, not even Consul: no right to read"),
        pytest.param(None, ConsulRefusedError, id="an empty body"),
        pytest.param([], ConsulRefusedError, id="a list"),
        pytest.param({"a": "aiflow"}, ConsulRefusedError, id="tags that are no list"),
    ],
)
def test_what_is_no_list_of_services(body: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        backends(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([3], id="a number"),
        pytest.param([{}], id="an object of another kind"),
        pytest.param([{"Node": {}, "Service": None, "Checks": []}], id="no service"),
        pytest.param(3, id="no list"),
    ],
)
def test_what_is_no_list_of_instances(body: Any) -> None:
    with pytest.raises(ConsulRefusedError, match="is this Consul's HTTP address"):
        instances(body, parsed={})


def test_an_instance_that_is_wrong_is_left_out_with_its_reason() -> None:
    found = instances([item(), item(node="n2", address="h:2", models=())], parsed={})
    assert list(found.entries) == [("b", "h:1")]
    assert found.problems == {"n2/b@h:2": "models: an OIP endpoint serves at least one model"}


@pytest.mark.parametrize("statuses", [("passing", "critical"), ("critical", "passing")])
def test_of_two_instances_at_one_address_the_fitter_counts(statuses: tuple[str, str]) -> None:
    body = [item(node=f"n{i}", status=status) for i, status in enumerate(statuses)]
    [entry] = instances(body, parsed={}).entries.values()
    assert entry.state is State.READY


def test_what_is_the_same_is_not_read_again() -> None:
    first = instances([item()], parsed={})
    second = instances([item(status="critical")], parsed=first.parsed)
    key = ("b", "h:1")
    assert second.entries[key].endpoint is first.entries[key].endpoint
    assert second.entries[key].state is State.UNHEALTHY
    third = instances([item(weight=9)], parsed=second.parsed)
    assert third.entries[key].endpoint.weight == 9
