"""Endpoints out of a real Consul: what their checks say, and how soon it counts."""

import asyncio
import json
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from fixtures.consul import Agent, StartAgent
from fixtures.consul_proxy import proxying
from integration.router.consul_kit import (
    INFER,
    check,
    deregister,
    discovery,
    entry,
    maintain,
    register,
    report,
    reported,
)
from integration.router.kit import backend, infer, mesh, until

from aiflow_router.catalog import last_known
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.consul import Settings, discovering
from aiflow_router.catalog.endpoint import State

pytestmark = pytest.mark.usefixtures("consul")


async def test_what_checks_and_maintenance_say_is_the_endpoints_state(consul: Agent) -> None:
    async with backend() as server, mesh(discovery(consul.address)) as running:
        item = entry(server.address, "checked", backend="checked")
        key = (item.backend, item.address)

        def state() -> State | None:
            found = running.router.view.snapshot.entries.get(key)
            return None if found is None else found.state

        async def becomes(expected: State) -> None:
            await until(lambda: state() is expected)

        await register(consul, item, status="critical")
        await becomes(State.UNHEALTHY)
        await check(consul, item, "passing")
        await becomes(State.READY)
        await maintain(consul, item)
        await becomes(State.DRAINING)
        await check(consul, item, "critical")
        await maintain(consul, item, enable=False)
        await becomes(State.UNHEALTHY)
        await check(consul, item, "warning")
        await becomes(State.READY)
        await deregister(consul, item)
        await until(lambda: state() is None)


async def test_what_is_not_ours_is_not_looked_at(consul: Agent) -> None:
    other = {"Name": "database", "Port": 5432, "Tags": ["primary"]}
    consul.ask("PUT", "/v1/agent/service/register", other)
    async with proxying(consul.address) as proxy, mesh(discovery(proxy.address)) as running:
        assert not running.router.view.snapshot.entries
        assert set(proxy.asked) == {"/v1/catalog/services"}
    consul.ask("PUT", "/v1/agent/service/deregister/database")


async def test_an_instance_that_is_wrong_is_left_out_and_counted(consul: Agent) -> None:
    wrong = {"Name": "odd", "Port": 1, "Tags": ["aiflow"], "Meta": {"aiflow": "2"}}
    consul.ask("PUT", "/v1/agent/service/register", wrong)
    async with mesh(discovery(consul.address)) as running:
        assert 'aiflow_discovery_errors_total{kind="entry"} 1.0' in await running.metrics()
        assert not running.router.view.snapshot.entries
    consul.ask("PUT", "/v1/agent/service/deregister/odd")


async def test_while_nothing_changes_consul_is_asked_once_a_wait(consul: Agent) -> None:
    async with (
        backend() as server,
        proxying(consul.address) as proxy,
        mesh(discovery(proxy.address, wait="200ms")) as running,
    ):
        item = entry(server.address, "quiet", backend="quiet")
        await register(consul, item)
        await until(lambda: "quiet" in running.router.view.snapshot.models)
        version = running.router.view.snapshot.version
        proxy.asked.clear()
        proxy.queries.clear()
        began_s = time.monotonic()
        await until(lambda: proxy.asked["/v1/health/service/quiet"] >= 5)
        assert time.monotonic() - began_s >= 4 * 0.2 * 0.9 * 0.9
        assert running.router.view.snapshot.version == version
        assert running.router.view.age_s() < 1
        # Any server may answer, and each waits a little less than it may, as its path's hash says.
        assert {frozenset(query) for query in proxy.queries} == {
            frozenset({"stale", "index", "wait"})
        }
        waits = {query["wait"] for query in proxy.queries}
        assert len(waits) == 2
        assert all(180 <= int(wait.removesuffix("ms")) <= 200 for wait in waits)
        text = await running.metrics()
        assert "aiflow_discovery_watches 2.0" in text
        assert "aiflow_discovery_from_disk 0.0" in text
        # What is not there any more is not asked about any more.
        await deregister(consul, item)
        await reported(running, "watches", 1)
        proxy.asked.clear()
        await until(lambda: proxy.asked["/v1/catalog/services"] >= 3)
        assert set(proxy.asked) == {"/v1/catalog/services"}


async def test_more_backends_than_connections_take_turns(consul: Agent) -> None:
    async with backend() as server:
        items = [entry(server.address, f"turn-{i}", backend=f"turn-{i}") for i in range(9)]
        for item in items:
            await register(consul, item)
        config = discovery(consul.address, wait="300ms", more=", max_connections: 3")
        async with mesh(config) as running:
            router = running.router
            await until(lambda: all(f"turn-{i}" in router.view.snapshot.models for i in range(9)))
            began_s = time.monotonic()
            await maintain(consul, items[8])
            await until(lambda: not router.view.snapshot.models["turn-8"])
            assert time.monotonic() - began_s < 5
        for item in items:
            await deregister(consul, item)


async def test_what_is_listed_stays_as_it_is_listed(consul: Agent) -> None:
    async with backend() as server:
        static = (
            ", static: [{backend: echo, protocol: oip, models: [listed], "
            f"address: '{server.address}'}}]"
        )
        item = entry(server.address, "other")
        async with mesh(discovery(consul.address, rest=static)) as running:
            await register(consul, item)
            channel = running.channel.unary_unary(INFER)
            await channel(infer("listed"), timeout=5)
            await asyncio.sleep(0.1)
            models = running.router.view.snapshot.models
            assert "other" not in models
            running.router.catalog.list_static([])
            await until(lambda: "other" in running.router.view.snapshot.models)
        await deregister(consul, item)


async def test_another_datacenter_is_asked_about_through_the_agent_here(
    start_consul: StartAgent,
) -> None:
    here = await asyncio.to_thread(start_consul)
    there = await asyncio.to_thread(partial(start_consul, datacenter="dc2"))
    await asyncio.to_thread(here.join, there)
    config = discovery(here.address, more=", datacenter: dc2")
    async with backend() as one, backend() as two, mesh(config) as running:
        await register(here, entry(one.address, "m", backend="here"))
        await register(there, entry(two.address, "m", backend="there"))
        await until(lambda: "m" in running.router.view.snapshot.models)
        assert await running.channel.unary_unary(INFER)(infer("m"), timeout=5) == infer("m")
        assert set(await running.endpoints()) == {two.address}


async def test_consul_is_asked_over_tls_with_a_certificate_of_ones_own(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    authority = trustme.CA()
    ca, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    served, key = tmp_path / "served.pem", tmp_path / "served.key"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("router.lan").private_key_and_cert_chain_pem.write_to_path(str(own))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(served))
    certificate.private_key_pem.write_to_path(str(key))
    tls = {"cert_file": str(served), "key_file": str(key), "ca_file": str(ca)}
    agent = await asyncio.to_thread(
        partial(start_consul, tls={**tls, "verify_incoming_https": True})
    )
    async with backend() as server:
        await register(agent, entry(server.address, "m"))
        files = f", ca: '{ca}', cert: '{own}', key: '{own}'"
        async with mesh(discovery(agent.https_address, more=files)) as running:
            assert await running.channel.unary_unary(INFER)(infer("m"), timeout=5) == infer("m")
        async with mesh(discovery(agent.https_address, more=f", ca: '{ca}'")) as running:
            assert not running.router.view.snapshot.entries  # Without one it is not let in.
            _, said = await report(running)
            assert "look at `ca`, `cert` and `key`" in str(said["failing"])


async def test_servers_that_register_here_are_sent_to_consul(consul: Agent) -> None:
    async with mesh(discovery(consul.address)) as running:
        with pytest.raises(Exception, match=f"endpoints in Consul at {consul.address}; register"):
            await running.register("127.0.0.1:9")


async def test_the_last_view_is_on_disk_and_replaced_in_one_step(
    consul: Agent, tmp_path: Path
) -> None:
    file = tmp_path / "last.json"
    item = entry("127.0.0.1:9", "kept", backend="kept")
    async with mesh(discovery(consul.address, more=f", last_known: '{file}'")) as running:
        await register(consul, item)
        await until(lambda: "kept" in running.router.view.snapshot.models)
        await until(lambda: file.exists() and b"kept" in file.read_bytes())
    document = json.loads(file.read_bytes())
    assert document["source"] == consul.address
    assert [found["models"] for found in document["endpoints"]] == [["kept"]]
    assert [path.name for path in tmp_path.iterdir()] == ["last.json"]  # noqa: ASYNC240 - at once
    await deregister(consul, item)


async def test_a_save_that_goes_on_at_the_end_is_over_before_the_last_one_begins(
    consul: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_save = last_known.save
    held, go_on = threading.Event(), threading.Event()
    saving = 0
    together: list[int] = []

    def save(*given: Any, **named: Any) -> None:
        nonlocal saving
        saving += 1
        together.append(saving)
        held.set()
        assert go_on.wait(10)
        really_save(*given, **named)
        saving -= 1

    monkeypatch.setattr(last_known, "save", save)
    file = tmp_path / "last.json"
    item = entry("127.0.0.1:9", "late", backend="late")
    settings = Settings(address=consul.address, last_known=str(file))
    catalog = Catalog()
    async with discovering(settings, catalog):
        await until(held.is_set)
        await register(consul, item)
        await until(lambda: "late" in catalog.snapshot.models)
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert together == [1, 1]
    assert b"late" in file.read_bytes()
    await deregister(consul, item)


async def test_readyz_tells_where_the_view_comes_from(consul: Agent) -> None:
    async with mesh(discovery(consul.address)) as running:
        _, said = await report(running)
        assert said["source"] == f"consul {consul.address}"
        assert said["from_disk"] is False
        assert "failing" not in said
