"""Registration at a router: taken, kept, regained, given back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fixtures.ports import free_address
from integration.runtime import echo
from integration.runtime.poll import until
from integration.runtime.registry import Registry, serving_registry

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import errors
from aiflow_servers.runtime.lease_registrar import LeaseRegistrar
from aiflow_servers.runtime.registration import Registration, RegistrationState
from aiflow_servers.runtime.server import serving

TTL_S = 1.5


@asynccontextmanager
async def registered(router: str, **options: Any) -> AsyncIterator[Registration]:
    registrar = LeaseRegistrar(
        router=router, api_key=options.pop("api_key", None), ttl_s=options.pop("ttl_s", TTL_S)
    )
    chosen: dict[str, Any] = {  # what most tests want
        "backend": "triton",
        "address": "127.0.0.1:9000",
        "protocol": registry_pb2.PROTOCOL_OIP,
        "models": ["detector"],
    } | options
    registration = Registration(registrar=registrar, endpoint=registry_pb2.Endpoint(**chosen))
    await registration.start()
    try:
        yield registration
    finally:
        await registration.close()


async def test_an_endpoint_is_registered_renewed_and_given_back() -> None:
    async with serving_registry() as registry:
        async with registered(registry.address, weight=3, zone="a", api_key="k-1") as registration:
            await until(lambda: registry.heard.count("Renew") >= 3)
            assert registration.state == "registered"
            assert registry.endpoints == [
                registry_pb2.Endpoint(
                    backend="triton",
                    address="127.0.0.1:9000",
                    protocol=registry_pb2.PROTOCOL_OIP,
                    models=["detector"],
                    weight=3,
                    zone="a",
                )
            ]
        assert registry.heard[:2] == ["Register", "Renew"]
        assert registry.heard[-1] == "Deregister"
        assert registry.heard.count("Register") == 1
        assert registry.ttls_ms == [round(TTL_S * 1000)]
        assert registry.keys == {"Bearer k-1"}
        assert not registry.leases
        assert registration.state == "closed"


async def test_without_a_key_none_is_sent() -> None:
    async with serving_registry() as registry, registered(registry.address):
        await until(lambda: registry.leases)
        assert registry.keys == {""}


async def test_a_lease_is_renewed_three_times_within_its_length() -> None:
    async with serving_registry() as registry, registered(registry.address, ttl_s=0.6):
        await until(lambda: registry.heard.count("Renew") == 1)
        started = time.monotonic()
        await until(lambda: registry.heard.count("Renew") == 4)
        assert 0.4 < time.monotonic() - started < 1.2


async def test_a_lost_lease_is_taken_anew_at_once() -> None:
    async with serving_registry() as registry, registered(registry.address) as registration:
        await until(lambda: registry.leases)
        registry.leases.clear()
        assert await until(lambda: registry.leases) < TTL_S
        assert registration.failures_total == 0


async def test_a_router_that_is_away_at_the_start_is_found_when_it_comes() -> None:
    address = free_address()
    started = time.monotonic()
    async with registered(address) as registration:
        assert time.monotonic() - started < 0.1, "start must not wait for the router"
        await until(lambda: registration.failures_total >= 2)
        assert registration.state is RegistrationState.FAILING
        async with serving_registry(address=address) as registry:
            assert await until(lambda: registry.leases) < 3
            await until(lambda: registration.state is RegistrationState.REGISTERED)


async def test_a_router_that_restarts_gets_the_endpoint_back() -> None:
    address = free_address()
    async with registered(address) as registration:
        async with serving_registry(address=address) as first:
            await until(lambda: first.leases)
        await until(lambda: registration.state is RegistrationState.FAILING)
        async with serving_registry(address=address) as second:
            assert await until(lambda: second.leases) < 3


async def test_each_change_of_state_is_logged_once() -> None:
    address = free_address()
    with structlog.testing.capture_logs() as logs:
        async with registered(address) as registration:
            await until(lambda: registration.failures_total >= 5)
            async with serving_registry(address=address) as registry:
                await until(lambda: registry.heard.count("Renew") >= 3)
    assert [line["state"] for line in logs] == ["failing", "registered"]
    assert logs[0]["log_level"] == "warning"
    assert address in str(logs[0])


async def test_a_refusal_is_logged_with_its_reason_and_tried_again() -> None:
    refusal = errors.AuthenticationError("this key is not known")
    async with serving_registry(Registry(refusal=refusal)) as registry:
        with structlog.testing.capture_logs() as logs:
            async with registered(registry.address) as registration:
                await until(lambda: registration.failures_total >= 2)
                registry.refusal = None
                await until(lambda: registry.leases)
    assert "this key is not known" in logs[0]["problem"]


async def test_models_are_replaced_by_the_time_the_call_returns() -> None:
    async with serving_registry() as registry, registered(registry.address) as registration:
        await until(lambda: registry.leases)
        await registration.set_models(["detector", "cutout"])
        (endpoint,) = registry.endpoints
        assert list(endpoint.models) == ["detector", "cutout"]
        heard = len(registry.heard)
        await registration.set_models(["detector", "cutout"])
        assert registry.heard[heard:].count("Register") == 0


async def test_no_models_take_the_endpoint_out_until_there_are_some() -> None:
    async with serving_registry() as registry, registered(registry.address) as registration:
        await until(lambda: registry.leases)
        await registration.set_models([])
        assert not registry.leases
        assert registration.state is RegistrationState.IDLE
        await registration.set_models(["cutout"])
        (endpoint,) = registry.endpoints
        assert list(endpoint.models) == ["cutout"]


async def test_an_endpoint_without_models_is_not_registered_at_first() -> None:
    async with (
        serving_registry() as registry,
        registered(registry.address, models=[]) as registration,
    ):
        await registration.set_models([])
        assert registry.heard == []
        await registration.set_models(["late"])
        assert registry.heard == ["Register"]


async def test_draining_is_told_and_kept_until_closed() -> None:
    async with serving_registry() as registry, registered(registry.address) as registration:
        await until(lambda: registry.leases)
        await registration.drain()
        assert registry.draining == set(registry.leases)
        assert registration.state is RegistrationState.DRAINING
        registry.leases.clear()
        heard = registry.heard.count("Renew")
        await until(lambda: registry.heard.count("Renew") > heard)
        assert not registry.leases, "a place that is being given up is not taken anew"


async def test_changes_while_the_router_is_away_do_not_wait_for_it_for_ever() -> None:
    async with registered(free_address()) as registration:
        started = time.monotonic()
        await registration.set_models(["other"])
        await registration.drain()
        assert time.monotonic() - started < 3
    assert time.monotonic() - started < 5


async def test_a_server_registers_its_services_when_it_takes_calls_and_leaves_before_it_stops() -> (
    None
):
    async with serving_registry() as registry:
        async with serving(
            echo.SERVER,
            registrar=LeaseRegistrar(router=registry.address),
            workers=1,
            weight=2,
            zone="b",
            version="1.2",
            grace_s=0.05,
        ) as running:
            await until(lambda: registry.leases)
            (endpoint,) = registry.endpoints
            assert endpoint == registry_pb2.Endpoint(
                backend="echo",
                address=running.address,
                protocol=registry_pb2.PROTOCOL_GRPC,
                services=[echo.SERVICE],
                weight=2,
                zone="b",
                version="1.2",
                device="cpu",
            )
        assert not registry.leases
