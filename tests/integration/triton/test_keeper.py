"""The keeper over a real Triton: crashes, and models that cannot be loaded."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from contract.registrar.kit import AtConsul, until_seen
from fixtures.consul import Agent
from fixtures.triton import PrepareTriton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.runtime.poll import gone, until
from integration.runtime.registry import serving_registry

from aiflow_sdk import AsyncClient
from aiflow_servers import places
from aiflow_servers.runtime.consul_registrar import ConsulRegistrar
from aiflow_servers.runtime.lease_registrar import LeaseRegistrar
from aiflow_servers.triton.keeper import Keeper, keeping
from aiflow_servers.triton.process import StartError

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


async def phases(keeper: Keeper, *, number: int) -> list[tuple[str, ...]]:
    """The first lists of ready models that the keeper reports, each different from the last."""
    seen = [keeper.models]

    def changed() -> bool:
        if keeper.models != seen[-1]:
            seen.append(keeper.models)
        return len(seen) == number

    await until(changed, within_s=120)
    return seen


async def test_a_killed_triton_is_reported_gone_and_started_again(
    prepare_triton: PrepareTriton, photos: Path
) -> None:
    picture = (photos / "coffee.png").read_bytes()
    async with (
        serving_registry() as registry,
        keeping(prepare_triton(), registrar=LeaseRegistrar(router=registry.address)) as keeper,
    ):
        await until(lambda: registry.endpoints)
        first = keeper.pid
        watching = asyncio.create_task(phases(keeper, number=3))
        await asyncio.sleep(0)  # it has seen the models that are ready now
        os.kill(first, signal.SIGKILL)
        await until(lambda: not registry.endpoints, within_s=2)
        assert "Deregister" in registry.heard  # it did not wait for the lease to run out
        assert await watching == [("detector",), (), ("detector",)]
        assert gone(first)
        second = keeper.pid
        assert second != first
        assert keeper.restarts == 1
        await until(lambda: [e.address for e in registry.endpoints] == [keeper.address])
        async with AsyncClient(keeper.address) as client:
            assert (await client.infer("detector", {"image": picture}))["count"].item() >= 1
    assert gone(second)


async def test_a_model_that_cannot_be_loaded_does_not_take_the_others_down(
    prepare_triton: PrepareTriton, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(places.model_repository() / "detector", repository / "detector")
    shutil.copytree(repository / "detector", repository / "broken")
    config = repository / "broken/config.pbtxt"
    config.write_text(config.read_text().replace('name: "detector"', 'name: "broken"'))
    (repository / "broken/1/model.py").write_text("raise RuntimeError('the weights are gone')\n")
    launch = prepare_triton(repository=repository, models=[])
    with structlog.testing.capture_logs() as log:
        async with keeping(launch, registrar=None) as keeper:
            assert keeper.models == ("detector",)
            # What the router and Consul ask for; it would be NOT_SERVING for all.
            async with grpc.aio.insecure_channel(keeper.address) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    (said,) = [line for line in log if line["event"] == "model cannot be served"]
    assert said["model"] == "broken"
    assert "the weights are gone" in said["problem"]


async def test_at_consul_its_models_are_told_and_consul_itself_asks_for_its_health(
    prepare_triton: PrepareTriton, consul: Agent
) -> None:
    registry = AtConsul(consul)

    async def asked() -> list[str]:
        checks = await asyncio.to_thread(consul.ask, "GET", "/v1/health/checks/triton")
        return [check["Output"] for check in checks if check["Type"] == "grpc"]

    async with keeping(
        prepare_triton(), registrar=ConsulRegistrar(consul=consul.address)
    ) as keeper:
        await until_seen(registry, "triton", {keeper.address: "READY"})
        seen = (await registry.seen("triton"))[keeper.address]
        assert (seen.models, seen.version) == (("detector",), "2.51.0")
        assert seen.device in ("cpu", "gpu")
        async with asyncio.timeout(8):
            while await asked() != [f"gRPC check {keeper.address}: success"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        os.kill(keeper.pid, signal.SIGKILL)
        await until_seen(registry, "triton", {}, within_s=2)
        await until(lambda: keeper.restarts == 1 and keeper.models, within_s=60)
        await until_seen(registry, "triton", {keeper.address: "READY"})
    assert await registry.seen("triton") == {}


@pytest.mark.parametrize("option", ["grpc_port", "metrics_port"])
async def test_a_port_in_use_is_named_before_anything_starts(
    prepare_triton: PrepareTriton, taken_port: int, option: str
) -> None:
    launch = prepare_triton(**{option: taken_port})
    with pytest.raises(StartError, match=rf"127\.0\.0\.1:{taken_port}.*in use") as caught:
        async with keeping(launch, registrar=None):
            pass
    assert f"--{option.replace('_', '-')}" in str(caught.value)


async def test_a_host_that_is_not_this_machine(prepare_triton: PrepareTriton) -> None:
    launch = prepare_triton(host="192.0.2.1")  # reserved for documentation
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0: .*--host"):
        async with keeping(launch, registrar=None):
            pass
