"""Registration at a real Consul: what only Consul has, and what can happen to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog
from contract.registrar.kit import TTL_S, AtConsul, registered, serving_health, until_seen
from fixtures.consul import LEFT_BEHIND, ROOT_TOKEN, Agent, StartAgent
from grpc_health.v1 import health_pb2
from integration.runtime.poll import until

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.errors import UnavailableError
from aiflow_servers.runtime.consul_registrar import ConsulRegistrar
from aiflow_servers.runtime.registrar import Registrar
from aiflow_servers.runtime.registration import Registration, RegistrationState

CHECKED_WITHIN_S = 7.5  # 5 s between two checks, 2 s for one, and a little


class AsServersDo(AtConsul):
    """With the TTL they have, and so the time that Consul has for an answer."""

    def registrar(self) -> Registrar:
        return ConsulRegistrar(consul=self.agent.address)


async def test_consul_itself_asks_for_the_endpoints_health(consul: Agent) -> None:
    registry = AtConsul(consul)
    async with serving_health() as served, registered(registry, served, "asked"):
        await until_seen(registry, "asked", {served.address: "READY"})
        await served.says(health_pb2.HealthCheckResponse.NOT_SERVING)
        await until_seen(registry, "asked", {served.address: "CRITICAL"}, within_s=CHECKED_WITHIN_S)
        await served.says(health_pb2.HealthCheckResponse.SERVING)
        await until_seen(registry, "asked", {served.address: "READY"}, within_s=CHECKED_WITHIN_S)


async def test_one_that_hangs_is_critical_within_its_ttl_and_returns(consul: Agent) -> None:
    registry = AtConsul(consul)
    async with serving_health() as served, registered(registry, served, "hangs") as registration:
        await until_seen(registry, "hangs", {served.address: "READY"})
        task = registration._task
        assert task is not None
        task.cancel()  # the process lives on, so the health that Consul asks for does too
        await until_seen(registry, "hangs", {served.address: "CRITICAL"}, within_s=TTL_S + 1)
        async with registered(registry, served, "hangs"):
            await until_seen(registry, "hangs", {served.address: "READY"}, within_s=1)


@pytest.mark.timeout(180)
async def test_who_is_critical_for_a_minute_is_removed(consul: Agent) -> None:
    """The minute began with the first test that used Consul, and Consul looks twice in one."""
    await until_seen(AtConsul(consul), LEFT_BEHIND, {}, within_s=120)


async def test_a_consul_that_stands_still_delays_nothing_and_keeps_the_endpoint(
    start_consul: StartAgent,
) -> None:
    agent = start_consul()
    registry = AtConsul(agent)
    async with serving_health() as served, registered(registry, served, "still") as registration:
        await until_seen(registry, "still", {served.address: "READY"})
        with agent.paused():
            await until(lambda: registration.state is RegistrationState.FAILING)
        await until_seen(registry, "still", {served.address: "READY"}, within_s=3)
        await until(lambda: registration.state is RegistrationState.REGISTERED, within_s=3)


async def test_a_consul_that_restarts_with_its_state_has_the_endpoint_fit_at_once(
    start_consul: StartAgent,
) -> None:
    agent = start_consul(keeps=True)
    registry = AsServersDo(agent)
    async with serving_health() as served, registered(registry, served, "kept") as registration:
        await until_seen(registry, "kept", {served.address: "READY"})
        await registry.stop()
        await until(lambda: registration.state is RegistrationState.FAILING)
        await registry.start()
        # Left alone it would be critical for up to 5 s, until Consul comes to look.
        await until_seen(registry, "kept", {served.address: "READY"}, within_s=2)


async def test_it_is_fit_at_once_also_where_a_change_of_it_was_what_found_consul_away(
    start_consul: StartAgent,
) -> None:
    agent = start_consul(keeps=True)
    registrar = ConsulRegistrar(consul=agent.address)
    endpoint = registry_pb2.Endpoint(
        backend="kept", protocol=registry_pb2.PROTOCOL_OIP, models=["detector"]
    )
    async with serving_health() as served, registrar.opened():
        endpoint.address = served.address
        await registrar.register(endpoint, anew=True)
        await asyncio.to_thread(agent.kill)
        # Where Consul comes to look by itself early, it leaves the endpoint critical.
        await served.says(health_pb2.HealthCheckResponse.NOT_SERVING)
        endpoint.models.append("cutout")
        with pytest.raises(UnavailableError, match="start the agent"):
            await registrar.register(endpoint, anew=False)
        await asyncio.to_thread(agent.start)
        await registrar.register(endpoint, anew=False)
        await served.says(health_pb2.HealthCheckResponse.SERVING)
        await registrar.renew(draining=False)
        path = f"/v1/agent/health/service/id/kept@{served.address}"
        health = await asyncio.to_thread(agent.ask, "GET", path)
        assert health["AggregatedStatus"] == "passing"
        assert "model=cutout" in health["Service"]["Tags"]
        await registrar.deregister()


async def test_a_token_that_is_refused_is_named_and_a_better_one_is_taken_up(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul(acl=True)
    token = tmp_path / "token"
    token.write_text("6b1f3a52-0c9e-4a57-9a3e-6d3a4b1f0002")
    endpoint = registry_pb2.Endpoint(
        backend="secret", protocol=registry_pb2.PROTOCOL_OIP, models=["detector"]
    )
    async with serving_health() as served:
        endpoint.address = served.address
        registrar = ConsulRegistrar(consul=agent.address, token_file=token, ttl_s=TTL_S)
        registration = Registration(registrar=registrar, endpoint=endpoint)
        with structlog.testing.capture_logs() as log:
            await registration.start()
            await until(lambda: registration.failures_total >= 2)
            token.write_text(ROOT_TOKEN + "\n")
            await until_seen(AtConsul(agent), "secret", {served.address: "READY"})
            await registration.close()
    (failing,) = [line for line in log if line["state"] == "failing"]
    assert "CONSUL_FORBIDDEN" in failing["problem"]
    assert "token_file" in failing["problem"]
    assert "6b1f3a52" not in str(log), "a token is no matter for a log"
    assert await AtConsul(agent).seen("secret") == {}
