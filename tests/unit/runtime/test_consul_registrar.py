"""What Consul is told to do with an endpoint."""

from __future__ import annotations

import pytest

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.errors import BadInputError
from aiflow_servers.runtime.consul_registrar import ConsulRegistrar, service

ENDPOINT = registry_pb2.Endpoint(
    backend="triton",
    address="10.0.0.5:8001",
    protocol=registry_pb2.PROTOCOL_OIP,
    models=["detector", "cutout", "detector"],
    weight=3,
)


def test_both_checks_pass_at_first_and_remove_who_fails_them_for_a_minute() -> None:
    body = service(ENDPOINT, ttl_s=3.0)
    assert body["Checks"] == [
        {
            "CheckID": "triton@10.0.0.5:8001:ttl",
            "Name": "the process lives",
            "TTL": "3000ms",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": "1m",
        },
        {
            "CheckID": "triton@10.0.0.5:8001:grpc",
            "Name": "grpc.health.v1",
            "GRPC": "10.0.0.5:8001",
            "Interval": "5s",
            "Timeout": "2s",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": "1m",
        },
    ]
    assert body["ID"] == "triton@10.0.0.5:8001"
    assert body["Weights"] == {"Passing": 3, "Warning": 3}
    assert body["Tags"] == ["aiflow", "model=detector", "model=cutout"]


def test_without_grpc_health_the_process_alone_is_asked() -> None:
    (check,) = service(ENDPOINT, ttl_s=3.0, grpc_health=False)["Checks"]
    assert check["TTL"] == "3000ms"


def test_what_consul_cannot_hold_is_refused_with_the_field() -> None:
    long = registry_pb2.Endpoint()
    long.CopyFrom(ENDPOINT)
    long.zone = "z" * 513
    with pytest.raises(BadInputError, match="zone: has 513 bytes"):
        service(long, ttl_s=3.0)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(BadInputError, match="must begin with http"):
        ConsulRegistrar(consul="127.0.0.1:8500")
