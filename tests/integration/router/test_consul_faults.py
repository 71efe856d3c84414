"""Consul away, emptied, slow, failing, confused: calls go on with the last good view."""

import asyncio
import re
import time
from pathlib import Path

import pytest
from fixtures.consul import ROOT_TOKEN, StartAgent
from fixtures.consul_proxy import proxying
from integration.router.consul_kit import (
    check,
    discovery,
    entry,
    maintain,
    register,
    report,
    reported,
    traffic,
)
from integration.router.kit import Mesh, backend, mesh, until

from aiflow_router.catalog import consul_watch
from aiflow_sdk.consul_entry import Entry


def models(running: Mesh) -> dict[str, int]:
    """How many endpoints take calls, by model."""
    return {name: len(keys) for name, keys in running.router.view.snapshot.models.items()}


async def test_consul_stops_and_comes_back_empty_and_no_call_fails(
    start_consul: StartAgent,
) -> None:
    agent = start_consul()
    async with (
        backend() as one,
        backend() as two,
        mesh(discovery(agent.address, grace="4s")) as running,
    ):
        for server in (one, two):
            await register(agent, entry(server.address, "m"))
        await until(lambda: models(running).get("m") == 2)
        async with traffic(running.channel) as made:
            agent.kill()
            await until(lambda: running.router.view.age_s() > 1.5)
            await made.more()
            status, said = await report(running)
            assert status == 200
            assert "start the agent there" in str(said["failing"])
            before = await _failures(running)
            await asyncio.sleep(1)
            assert await _failures(running) - before < 20, "it is asked ever more seldom"
            await asyncio.to_thread(agent.start)
            # Empty: both are held. One registers again, the other never does.
            await until(lambda: running.router.view.age_s() < 0.5, within_s=10)
            await reported(running, "held", 2)
            await register(agent, entry(one.address, "m", version="2"))
            await made.more()
            assert models(running)["m"] == 2
            await until(lambda: models(running)["m"] == 1, within_s=10)
            await made.more()
        assert made.failed == []
        assert one.seen[-1].method.endswith("ModelInfer")
        assert 'aiflow_discovery_errors_total{kind="away"}' in await running.metrics()


async def _failures(running: Mesh) -> float:
    """Questions that nobody answered."""
    found = re.search(r'errors_total\{kind="away"\} (\S+)', await running.metrics())
    assert found is not None
    return float(found[1])


async def test_consul_is_slow_and_calls_are_not(start_consul: StartAgent) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address)) as running,
    ):
        await register(agent, entry(server.address, "m"))
        await until(lambda: models(running).get("m") == 1)
        proxy.delay_s = 1.5
        async with traffic(running.channel) as made:
            await register(agent, entry(server.address, "m", "n"))
            began_s = time.monotonic()
            await made.more(50)
            assert time.monotonic() - began_s < 5
            await until(lambda: "n" in models(running))
        assert made.failed == []
        assert 'errors_total{kind="away"}' not in await running.metrics()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        pytest.param(500, "failed", id="500"),
        pytest.param(429, "failed", id="429, asked too often"),
        pytest.param(403, "forbidden", id="403, the token is revoked"),
    ],
)
async def test_consul_refuses_to_answer_and_then_is_well_again(
    status: int, kind: str, start_consul: StartAgent
) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="200ms")) as running,
    ):
        await register(agent, entry(server.address, "m"))
        await until(lambda: models(running).get("m") == 1)
        proxy.status = status
        async with traffic(running.channel) as made:
            await until(lambda: running.router.view.age_s() > 1.5)
            proxy.asked_at_s.clear()
            await asyncio.sleep(1)
            assert len(proxy.asked_at_s) < 30, "a failing Consul is asked ever more seldom"
            proxy.status = None
            await register(agent, entry(server.address, "m", "n"))
            await until(lambda: "n" in models(running), within_s=12)
        assert made.failed == []
        assert f'aiflow_discovery_errors_total{{kind="{kind}"}}' in await running.metrics()


async def test_checks_that_failed_while_consul_was_away_count_after_the_grace(
    start_consul: StartAgent,
) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="200ms", grace="3s")) as running,
    ):
        item = entry(server.address, "m")
        await register(agent, item)
        await until(lambda: models(running).get("m") == 1)
        async with traffic(running.channel) as made:
            proxy.status = 500
            await reported(running, "watches", 2)
            await until(lambda: running.router.view.age_s() > 0.7)
            await check(agent, item, "critical")
            proxy.status = None
            await reported(running, "held", 1)
            await check(agent, item, "passing")
            await reported(running, "held", 0)
            await check(agent, item, "critical")
            await reported(running, "held", 1)
            await made.more()
        assert made.failed == []
        await until(lambda: models(running)["m"] == 0)
        await reported(running, "held", 0)
        async with asyncio.timeout(10):  # The list may be asked for again after up to 5 s.
            while "failing" in (await report(running))[1]:  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(0.05)
        await asyncio.sleep(3)
        # Nothing is in doubt any more: what is told counts at once.
        await check(agent, item, "passing")
        await until(lambda: models(running)["m"] == 1)
        await check(agent, item, "critical")
        await until(lambda: models(running)["m"] == 0, within_s=1)


async def test_an_index_that_goes_backwards_starts_anew_and_loses_nothing(
    start_consul: StartAgent,
) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="200ms")) as running,
    ):
        proxy.index = lambda index: index + 1000
        await register(agent, entry(server.address, "m"))
        await until(lambda: models(running).get("m") == 1)
        async with traffic(running.channel) as made:
            proxy.index = lambda index: index
            await until(lambda: running.router.view.age_s() < 0.3)
            await register(agent, entry(server.address, "m", "n"))
            await until(lambda: "n" in models(running))
            # And one that never goes forward: it must not be asked without a pause.
            proxy.index = lambda _: 0
            await made.more()
            proxy.asked_at_s.clear()
            await asyncio.sleep(1)
            assert len(proxy.asked_at_s) <= 2 * consul_watch.OWN_BURST + 2 * 10
            assert models(running)["m"] == 1
        assert made.failed == []
        assert 'errors_total{kind="index_backwards"}' in await running.metrics()


async def test_a_server_that_knows_no_leader_is_not_believed(start_consul: StartAgent) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="200ms")) as running,
    ):
        item = entry(server.address, "m")
        await register(agent, item)
        await until(lambda: models(running).get("m") == 1)
        proxy.leader = False
        async with traffic(running.channel) as made:
            await maintain(agent, item)
            await until(lambda: running.router.view.age_s() > 0.7)
            await made.more()
            assert "knows no leader" in str((await report(running))[1]["failing"])
        assert made.failed == []
        proxy.leader = True
        await until(lambda: models(running)["m"] == 0, within_s=10)


async def test_a_token_that_is_revoked_leaves_the_view_as_it_is(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul(acl=True)
    rules = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
    policy = agent.ask("PUT", "/v1/acl/policy", {"Name": "reads", "Rules": rules})
    body = {"Policies": [{"ID": policy["ID"]}]}
    token = agent.ask("PUT", "/v1/acl/token", body)
    file = tmp_path / "token"
    file.write_text(token["SecretID"])
    config = discovery(agent.address, wait="200ms", grace="0s", more=f", token_file: '{file}'")
    async with backend() as server, mesh(config) as running:
        await register(agent, entry(server.address, "m"), token=ROOT_TOKEN)
        await until(lambda: models(running).get("m") == 1)
        async with traffic(running.channel) as made:
            await asyncio.to_thread(agent.ask, "DELETE", f"/v1/acl/token/{token['AccessorID']}")
            await until(lambda: running.router.view.age_s() > 1.0)
            await made.more()
            assert models(running)["m"] == 1
            # A token without rights is answered with an empty list, which is no reason either.
            powerless = await asyncio.to_thread(agent.ask, "PUT", "/v1/acl/token", {})
            file.write_text(powerless["SecretID"])
            async with asyncio.timeout(10):  # It is asked again after up to 5 s.
                while "not even itself" not in str((await report(running))[1].get("failing")):  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(0.05)
            assert models(running)["m"] == 1
            file.write_text(ROOT_TOKEN)
            await until(lambda: running.router.view.age_s() < 0.5, within_s=10)
            await made.more()
        assert made.failed == []
        text = await running.metrics()
        assert 'aiflow_discovery_errors_total{kind="forbidden"}' in text
        assert running.log
        for secret in (token["SecretID"], ROOT_TOKEN):
            assert secret not in text + b"".join(running.log).decode()


async def test_hundreds_of_backends_that_flap_keep_nobody_busy(start_consul: StartAgent) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="2s", more=", max_connections: 600")) as running,
    ):
        await register(agent, entry(server.address, "m", backend="steady"))
        await until(lambda: models(running).get("m") == 1)
        items = [entry(server.address, f"f{i}", backend=f"flap-{i}") for i in range(500)]
        for begin in range(0, 500, 50):
            await asyncio.gather(*(register(agent, item) for item in items[begin : begin + 50]))
        await until(lambda: len(models(running)) == 501, within_s=20)
        stop = asyncio.Event()
        flaps = 0

        async def flap() -> None:
            nonlocal flaps
            while not stop.is_set():
                for status in ("critical", "passing"):
                    for begin in range(0, 500, 25):
                        batch = items[begin : begin + 25]
                        await asyncio.gather(*(check(agent, item, status) for item in batch))
                        flaps += len(batch)

        flapping = asyncio.create_task(flap())
        async with traffic(running.channel) as made:
            proxy.asked_at_s.clear()
            began_s = asyncio.get_running_loop().time()
            await asyncio.sleep(4)
            lasted_s = asyncio.get_running_loop().time() - began_s
            asked = len(proxy.asked_at_s)
            stop.set()
            await flapping
            assert flaps > 500
            assert asked <= consul_watch.ALL_BURST + consul_watch.ALL_PER_S * lasted_s
            await made.more()
        assert made.failed == []
        await until(lambda: sum(models(running).values()) == 501, within_s=15)


async def test_when_consul_returns_not_all_watches_ask_it_at_once(
    start_consul: StartAgent,
) -> None:
    agent = start_consul()
    async with (
        backend() as server,
        proxying(agent.address) as proxy,
        mesh(discovery(proxy.address, wait="5s")) as running,
    ):
        await asyncio.gather(*(register(agent, item) for item in _herd(server.address)))
        await until(lambda: len(models(running)) == 60)
        proxy.status = 500
        # Each watch is told so when its question ends.
        await asyncio.gather(*(maintain(agent, item) for item in _herd(server.address)))
        await until(lambda: running.router.view.age_s() > 3)
        proxy.asked_at_s.clear()
        proxy.status = None
        await until(lambda: not any(models(running).values()), within_s=20)
        asked_s = sorted(proxy.asked_at_s)
        together = max(sum(at_s <= other_s < at_s + 0.2 for other_s in asked_s) for at_s in asked_s)
        assert together < 40, f"{together} of {len(asked_s)} questions within 0.2 s"


def _herd(address: str) -> list[Entry]:
    return [entry(address, f"h{i}", backend=f"herd-{i}") for i in range(60)]


async def test_a_router_starts_from_the_last_view_when_consul_is_away(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul()
    file = tmp_path / "last.json"
    config = discovery(agent.address, wait="300ms", grace="3s", more=f", last_known: '{file}'")
    async with backend() as server:
        async with mesh(config) as running:
            await register(agent, entry(server.address, "m"))
            await until(lambda: models(running).get("m") == 1)
        agent.kill()
        async with mesh(config) as running, traffic(running.channel) as made:
            assert models(running) == {"m": 1}
            status, said = await report(running)
            assert (status, said["from_disk"]) == (200, True)
            assert "aiflow_discovery_from_disk 1.0" in await running.metrics()
            await asyncio.to_thread(agent.start)
            await register(agent, entry(server.address, "m", "n"))
            await until(lambda: "n" in models(running), within_s=12)
            assert (await report(running))[1]["from_disk"] is False
            await made.more()
        assert made.failed == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"{", id="a file that was cut off"),
        pytest.param(b'{"format": 9}', id="a file of a later version"),
        pytest.param(
            b'{"format": 1, "source": "http://other:1", "endpoints": [], "saved_at_s": 1}',
            id="the view of another Consul",
        ),
    ],
)
async def test_without_consul_and_without_a_view_a_router_is_not_ready(
    content: bytes | None, start_consul: StartAgent, tmp_path: Path
) -> None:
    file = tmp_path / "last.json"
    if content is not None:
        file.write_bytes(content)
    async with mesh(discovery("http://127.0.0.1:9", more=f", last_known: '{file}'")) as running:
        status, said = await report(running)
        assert status == 503
        assert said["from_disk"] is False
        assert 'errors_total{kind="last_known"} 1.0' in await running.metrics()
