"""`aiflow canary`: a new version gets calls step by step, under traffic, and gives them back."""

import asyncio
from collections import Counter

from click.testing import CliRunner
from integration.router.kit import Mesh, backend, infer, mesh, until

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.command.canary import canary

INFER = "/inference.GRPCInferenceService/ModelInfer"


async def run(m: Mesh, *arguments: str, fails: bool = False) -> str:
    """What the command printed."""
    command = [*arguments, "--router", m.router.grpc_address]
    result = await asyncio.to_thread(CliRunner().invoke, canary, command)
    assert (result.exit_code != 0) is fails, result.output
    return result.output + str(result.exception or "")


async def test_a_version_is_switched_step_by_step_without_a_failed_call() -> None:
    answered: Counter[str] = Counter()
    async with backend() as old, backend() as new, mesh() as m:
        await m.register(old.address, models=("m",), backend="old")
        await m.register(new.address, models=("m-v2",), backend="new")
        stop = asyncio.Event()

        async def caller() -> None:
            while not stop.is_set():
                answer = await m.channel.unary_unary(INFER)(infer("m"), timeout=5)
                answered[answer[2:].decode()] += 1
                await asyncio.sleep(0.001)

        async def share() -> float:
            answered.clear()
            await until(lambda: answered.total() >= 300, within_s=20)
            return answered["m-v2"] / answered.total()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(caller())
            assert await share() == 0
            for arguments, percent in (
                (("--new", "m-v2"), 10),
                (("--step",), 50),
                (("--step",), 100),
                (("--back",), 0),
            ):
                assert f"m: {percent} % to m-v2" in await run(m, "m", *arguments)
                assert abs(await share() - percent / 100) < 0.12
            stop.set()
    assert set(answered) <= {"m", "m-v2"}


async def test_a_version_that_nothing_serves_gets_no_calls() -> None:
    async with backend() as old, backend() as new, mesh() as m:
        await m.register(old.address, models=("m",), backend="old")
        version = m.router.policies.current.version
        assert 'there is no model "m-v2"' in await run(m, "m", "--new", "m-v2", fails=True)
        lease = await m.register(new.address, models=("m-v2",), backend="new")
        assert "m: 10 % to m-v2" in await run(m, "m", "--new", "m-v2")
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
        said = await run(m, "m", "--step", fails=True)
        assert 'no endpoint serves "m-v2" now' in said
        assert "m: 0 % to m-v2" in await run(m, "m", "--back")
        assert m.router.policies.current.version != version


async def test_it_says_what_is_and_what_cannot_be() -> None:
    async with backend() as new, mesh("routes: [{match: {model: m}, split: {m: 0, v2: 100}}]") as m:
        await m.register(new.address, models=("v2",), backend="new")
        version = m.router.policies.current.version
        assert "m: 100 % to v2, 0 % to m" in await run(m, "m")
        assert "no further step" in await run(m, "m", "--step", fails=True)
        assert "--new" in await run(m, "other", "--step", fails=True)
        assert "one of" in await run(m, "m", "--step", "--back", fails=True)
        assert "m: 25 % to v2" in await run(m, "m", "--to", "25", "--dry-run")
        assert m.router.policies.current.version == version
