"""Addresses: what is read, what is refused, and what a router is told."""

from __future__ import annotations

import pytest

from aiflow_servers.runtime import address
from aiflow_servers.runtime.address import AddressError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("127.0.0.1:7600", ("127.0.0.1", 7600), id="an IPv4 address"),
        pytest.param("[::1]:0", ("::1", 0), id="an IPv6 address, any port"),
        pytest.param("mesh.example:65535", ("mesh.example", 65535), id="a host name"),
    ],
)
def test_addresses_are_read_and_written(text: str, expected: tuple[str, int]) -> None:
    assert address.split(text) == expected
    assert address.join(*expected) == text


@pytest.mark.parametrize(
    "text",
    ["", "localhost", ":80", "a:b", "1.2.3.4:65536", "::1:80", "http://a:80", "a b:80", "a:-1"],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(AddressError, match=r"127\.0\.0\.1:7600"):
        address.split(text)


@pytest.mark.parametrize(
    ("host", "router", "expected"),
    [
        pytest.param("10.0.0.5", "far:7600", "10.0.0.5:80", id="a given host is taken as it is"),
        pytest.param("0.0.0.0", "127.0.0.1:7600", "127.0.0.1:80", id="every interface, IPv4"),
        pytest.param("::", "127.0.0.1:7600", "127.0.0.1:80", id="every interface, IPv6"),
    ],
)
def test_the_advertised_address_is_one_the_router_can_reach(
    host: str, router: str, expected: str
) -> None:
    assert address.advertised(host=host, port=80, caller=router) == expected


def test_where_it_cannot_be_told_the_operator_is_asked() -> None:
    with pytest.raises(AddressError, match="--advertise HOST:80"):
        address.advertised(host="0.0.0.0", port=80, caller="no-such-host.invalid:1")
    with pytest.raises(AddressError, match=r"Consul.*--advertise HOST:80"):
        address.advertised(host="0.0.0.0", port=80, caller=None)
