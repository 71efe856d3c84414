"""What holds wherever a server registers: at the router, and at a real Consul."""

from __future__ import annotations

import asyncio
import time

from contract.registrar.kit import (
    TTL_S,
    Registry,
    Seen,
    registered,
    serving_health,
    until_seen,
)
from integration.runtime.poll import until

from aiflow_servers.runtime.registration import RegistrationState


async def test_an_endpoint_appears_as_it_is_stays_and_leaves(registry: Registry) -> None:
    said = {"weight": 3, "zone": "a", "version": "1.4", "device": "gpu:0"}
    async with serving_health() as served:
        async with registered(registry, served, "appears", **said) as registration:
            await until_seen(registry, "appears", {served.address: "READY"})
            # The registry may show it a moment before its answer is here.
            await until(lambda: registration.state is RegistrationState.REGISTERED)
            assert (await registry.seen("appears"))[served.address] == Seen(
                models=("detector",), state="READY", weight=3, zone="a", version="1.4",
                device="gpu:0",
            )  # fmt: skip
            for _ in range(10):  # longer than it lives without a renewal
                await asyncio.sleep(TTL_S / 5)
                assert (await registry.seen("appears"))[served.address].state == "READY"
        assert await registry.seen("appears") == {}
        assert registration.state is RegistrationState.CLOSED


async def test_models_change_by_the_time_the_call_returns(registry: Registry) -> None:
    async with serving_health() as served, registered(registry, served, "models") as registration:
        await until_seen(registry, "models", {served.address: "READY"})
        await registration.set_models(["detector", "cutout"])
        await until_seen(registry, "models", {served.address: "READY"}, within_s=1)
        assert (await registry.seen("models"))[served.address].models == ("detector", "cutout")
        await registration.set_models([])
        await until_seen(registry, "models", {}, within_s=1)
        assert registration.state is RegistrationState.IDLE
        await registration.set_models(["cutout"])
        await until_seen(registry, "models", {served.address: "READY"}, within_s=1)


async def test_it_drains_until_it_is_closed_and_also_when_its_models_change(
    registry: Registry,
) -> None:
    async with serving_health() as served:
        async with registered(registry, served, "drains") as registration:
            await until_seen(registry, "drains", {served.address: "READY"})
            await registration.drain()
            await until_seen(registry, "drains", {served.address: "DRAINING"}, within_s=1)
            assert registration.state is RegistrationState.DRAINING
            await registration.set_models(["cutout"])
            await asyncio.sleep(TTL_S)
            assert (await registry.seen("drains"))[served.address].state == "DRAINING"
        await until_seen(registry, "drains", {}, within_s=1)


async def test_a_registry_that_restarts_empty_gets_the_endpoint_back(registry: Registry) -> None:
    async with serving_health() as served, registered(registry, served, "back") as registration:
        await until_seen(registry, "back", {served.address: "READY"})
        await registry.stop()
        await until(lambda: registration.state is RegistrationState.FAILING)
        await registry.start()
        await until_seen(registry, "back", {served.address: "READY"}, within_s=5)
        await until(lambda: registration.state is RegistrationState.REGISTERED)


async def test_a_registry_that_is_away_at_first_is_found_and_nothing_waits_for_it(
    registry: Registry,
) -> None:
    await registry.stop()
    async with serving_health() as served:
        started_s = time.monotonic()
        async with registered(registry, served, "late") as registration:
            assert time.monotonic() - started_s < 0.1, "start must not wait for the registry"
            await registration.set_models(["cutout"])
            await until(lambda: registration.failures_total >= 2)
            assert registration.state is RegistrationState.FAILING
            await registry.start()
            await until_seen(registry, "late", {served.address: "READY"}, within_s=5)
            assert (await registry.seen("late"))[served.address].models == ("cutout",)


async def test_one_that_drains_is_not_taken_back_by_a_registry_that_forgot_it(
    registry: Registry,
) -> None:
    async with serving_health() as served, registered(registry, served, "gone") as registration:
        await until_seen(registry, "gone", {served.address: "READY"})
        await registration.drain()
        await registry.stop()
        await until(lambda: registration.state is RegistrationState.FAILING)
        await registry.start()
        await until(lambda: registration.state is RegistrationState.DRAINING)
        assert await registry.seen("gone") == {}


async def test_the_place_of_one_that_was_killed_is_taken_at_once(registry: Registry) -> None:
    async with serving_health() as served, registered(registry, served, "killed") as killed:
        await until_seen(registry, "killed", {served.address: "READY"})
        await killed.drain()
        # As by kill -9: nobody says a word any more.
        killed._task.cancel()  # type: ignore[union-attr]
        async with registered(registry, served, "killed"):
            await until_seen(registry, "killed", {served.address: "READY"}, within_s=1)
