"""`discovery` and `zone` of aiflow.yaml, and the flags that win over them."""

from typing import Literal

import pytest
from unit.router.config_kit import refusal

from aiflow_router.config.file import ConfigError, parse, printed, with_discovery


def test_consul_may_be_asked_with_all_there_is_and_beside_a_list() -> None:
    config = parse(
        """
        zone: a
        discovery:
          consul:
            address: https://consul.lan:8501
            token_file: /run/secrets/consul
            datacenter:
            ca: ca.pem
            wait: 5s
            last_known: last.json
          static: [{backend: b, address: 'h:1', protocol: oip, models: [m]}]
        """
    )
    assert config.discovery.consul is not None
    settings = config.discovery.consul.settings()
    assert (settings.wait_s, settings.grace_s, settings.datacenter) == (5.0, 60.0, "")
    assert settings.name() == "https://consul.lan:8501"
    assert parse(printed(config)) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "discovery: {consul: {adress: x}}", "did you mean `address`?", id="a key of Consul"
        ),
        pytest.param(
            "discovery: {consul: {address: 'h:8500'}}", "must begin with http://", id="no scheme"
        ),
        pytest.param(
            "discovery: {consul: {}, embedded: {}}", "exclude each other", id="two registries"
        ),
        pytest.param(
            "discovery: {consul: {cert: a.pem}}", "belong together", id="a certificate alone"
        ),
        pytest.param(
            "discovery: {consul: {ca: a.pem}}",
            "`ca` has no effect with http://127.0.0.1:8500: write https://",
            id="a certificate for a connection without any",
        ),
        pytest.param("discovery: {consul: {wait: 10m}}", "50ms to 5m", id="a wait without end"),
        pytest.param("discovery: {}", "name a source of endpoints", id="no source of endpoints"),
        pytest.param("discovery: {}", "name a source", id="no discovery"),
        pytest.param(
            "zone: a\ndiscovery: {static: [{backend: b, address: 'h:1', protocol: oip, "
            "models: [m], zone: b}]}",
            'no static endpoint is in zone "a"',
            id="a zone that nobody is in",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: nowhere, protocol: oip, models: [m]}]}",
            "address:",
            id="a static endpoint with a bad address",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: oip, models: [m], "
            'device: "gpu\\e[2J"}]}',
            "device: must be at most 128 printable characters",
            id="a static endpoint with a device that paints",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: oip}]}",
            "at least one model",
            id="a static endpoint without models",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: grpc, "
            "services: [grpc.health.v1.Health]}]}",
            "answered by the router itself",
            id="a static endpoint that would never be asked",
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("text", "source", "consul", "address"),
    [
        pytest.param("", None, {"address": "http://a:1"}, None, id="not asked for"),
        pytest.param("", "consul", {}, "http://127.0.0.1:8500", id="by a flag alone"),
        pytest.param(
            "discovery: {embedded: {}}", "consul", {"address": "http://a:1"}, "http://a:1",
            id="a flag over the file",
        ),
        pytest.param(
            "discovery: {consul: {address: 'http://f:1'}}", None, {}, "http://f:1", id="the file"
        ),
        pytest.param(
            "discovery: {consul: {address: 'http://f:1'}}", None, {"address": "http://a:1"},
            "http://a:1", id="another agent than the file's",
        ),
        pytest.param("discovery: {consul: {}}", "embedded", {}, None, id="back to the router"),
    ],
)  # fmt: skip
def test_flags_say_where_endpoints_come_from(
    text: str, source: Literal["embedded", "consul"] | None, consul: dict[str, str],
    address: str | None,
) -> None:  # fmt: skip
    discovery = with_discovery(parse(text), source, consul).discovery
    assert (discovery.consul.address if discovery.consul else None) == address
    assert (discovery.embedded is None) == (address is not None)


def test_what_the_file_says_of_consul_stays_under_the_flags() -> None:
    config = parse("discovery: {consul: {wait: 2s, datacenter: b}, static: []}")
    consul = with_discovery(config, "consul", {"token_file": "/t"}).discovery.consul
    assert consul is not None
    assert (consul.wait, consul.datacenter, consul.token_file) == (2.0, "b", "/t")


def test_a_flag_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--consul: address: .*must begin with http"):
        with_discovery(parse(""), "consul", {"address": "127.0.0.1:8500"})
