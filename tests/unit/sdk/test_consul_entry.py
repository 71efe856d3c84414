"""An endpoint as Consul holds it: what goes in comes out, and what cannot go in is refused."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_sdk.consul_entry import Entry, EntryError, from_service, to_service

NAMES = st.lists(st.from_regex(r"[!-~]{1,256}", fullmatch=True), unique=True, max_size=4).map(tuple)
HOSTS = st.sampled_from(["127.0.0.1", "[::1]", "gpu-1.lan", "[2001:db8::7]"])
META = st.text(max_size=128)
ENTRIES = st.builds(
    Entry,
    backend=st.from_regex(r"[a-zA-Z0-9._-]{1,128}", fullmatch=True).filter(
        lambda name: name != "consul"
    ),
    address=st.builds("{}:{}".format, HOSTS, st.integers(1, 65535)),
    protocol=st.sampled_from(["oip", "grpc"]),
    models=NAMES,
    services=NAMES,
    weight=st.integers(1, 1000),
    zone=META,
    version=META,
    device=META,
)
ENTRY = Entry(backend="echo", address="127.0.0.1:9001", protocol="oip", models=("m",))


def answered(service: dict[str, Any]) -> dict[str, Any]:
    """As Consul gives back what was registered."""
    return {"Service" if key == "Name" else key: value for key, value in service.items()}


@given(ENTRIES)
def test_what_a_server_writes_is_what_a_router_reads(entry: Entry) -> None:
    assert from_service(answered(to_service(entry))) == entry


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"backend": "a b"}, "backend: must be 1 to 128", id="a backend with a space"),
        pytest.param({"backend": "consul"}, "Consul's own servers", id="the name of Consul"),
        pytest.param({"address": "9001"}, "address: must be", id="an address without a host"),
        pytest.param({"address": "h:70000"}, "address: must be", id="a port that cannot be"),
        pytest.param({"models": ("a b",)}, 'models: "a b" is not', id="a model with a space"),
        pytest.param({"models": ("a", "a")}, "each name may be there once", id="a model twice"),
        pytest.param({"weight": 0}, "weight: must be 1 to 1000", id="a weight of nothing"),
        pytest.param({"version": "v" * 513}, "has 513 bytes", id="a version over the limit"),
        pytest.param({"zone": "é" * 257}, "has 514 bytes", id="the limit is of bytes"),
    ],
)
def test_what_consul_cannot_hold_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(EntryError, match=expected):
        to_service(replace(ENTRY, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"Meta": {}}, 'aiflow: ""', id="a service that is not ours"),
        pytest.param({"Meta": None}, 'aiflow: ""', id="no Meta at all"),
        pytest.param(
            {"Meta": {"aiflow": "2", "protocol": "oip"}}, 'reads "1"', id="one of a later version"
        ),
        pytest.param(
            {"Meta": {"aiflow": "1", "protocol": "http"}}, "must have oip or grpc", id="a protocol"
        ),
        pytest.param({"Port": "many"}, "not as AIFlow writes", id="a port that is no number"),
        pytest.param({"Weights": 3}, "not as AIFlow writes", id="weights of another shape"),
    ],
)
def test_what_is_not_an_endpoint_is_not_read(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(EntryError, match=expected):
        from_service({**answered(to_service(ENTRY)), **changes})


def test_the_node_lends_its_address_to_a_service_without_one() -> None:
    service = {**answered(to_service(ENTRY)), "Address": ""}
    assert from_service(service, node_address="10.0.0.7").address == "10.0.0.7:9001"
