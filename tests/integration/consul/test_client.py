"""The client against a real Consul, and against servers that are none."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from fixtures.consul import ROOT_TOKEN, Agent, StartAgent

from aiflow_sdk.consul import (
    Consul,
    ConsulAwayError,
    ConsulError,
    ConsulFailedError,
    ConsulForbiddenError,
    ConsulMissingError,
    ConsulRefusedError,
    address_problem,
    segment,
)
from aiflow_sdk.consul_entry import Entry, from_service, to_service

ENTRY = Entry(
    backend="client-test",
    address="[::1]:9001",
    protocol="grpc",
    services=("a.Echo", "a.Other"),
    weight=7,
    zone="a",
    version="1.2",
    device="gpu:0",
)


async def test_a_registered_endpoint_is_read_back_as_it_was(consul: Agent) -> None:
    async with Consul(consul.address) as client:
        await client.put("/v1/agent/service/register", to_service(ENTRY))
        answer = await client.get(f"/v1/health/service/{segment(ENTRY.backend)}", stale=False)
        assert [from_service(item["Service"]) for item in answer.body] == [ENTRY]
        assert answer.index > 0
        await client.put(f"/v1/agent/service/deregister/{segment(ENTRY.id)}")


async def test_a_question_that_waits_is_answered_by_a_change(consul: Agent) -> None:
    path = "/v1/health/service/waited"
    async with Consul(consul.address) as client:
        first = await client.get(path)
        waiting = asyncio.create_task(client.get(path, index=first.index, wait_s=60))
        await client.put("/v1/agent/service/register", to_service(replace(ENTRY, backend="waited")))
        async with asyncio.timeout(5):
            answer = await waiting
        assert answer.index > first.index
        assert len(answer.body) == 1
        await client.put("/v1/agent/service/deregister/" + segment("waited@[::1]:9001"))


async def test_a_question_that_waits_ends_by_itself(consul: Agent) -> None:
    async with Consul(consul.address) as client:
        first = await client.get("/v1/catalog/nodes")
        began_s = time.monotonic()
        again = await client.get("/v1/catalog/nodes", index=first.index, wait_s=0.05)
        assert time.monotonic() - began_s < 2
        assert again.body[0]["Node"] == first.body[0]["Node"]


async def test_keys_are_written_read_and_deleted(consul: Agent) -> None:
    async with Consul(consul.address) as client:
        await client.put("/v1/kv/client/test", b"value")
        assert (await client.get("/v1/kv/client/test", {"raw": ""})).raw == b"value"
        await client.delete("/v1/kv/client/test")
        with pytest.raises(ConsulMissingError):
            await client.get("/v1/kv/client/test")


async def test_the_token_is_read_anew_when_its_file_changes(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul(acl=True)
    file = tmp_path / "token"
    file.write_text("00000000-0000-0000-0000-000000000000\n")
    async with Consul(agent.address, token_file=file) as client:
        with pytest.raises(ConsulForbiddenError) as refused:
            await client.get("/v1/kv/x")
        assert "00000000" not in str(refused.value)
        file.write_text(ROOT_TOKEN)
        await client.put("/v1/kv/x", b"1")
        file.unlink()
        with pytest.raises(ConsulForbiddenError, match=r"token cannot be read: No such file"):
            await client.get("/v1/kv/x")
    async with Consul(agent.address) as client:
        with pytest.raises(ConsulForbiddenError, match="name a token in token_file"):
            await client.get("/v1/agent/self")


async def test_an_agent_that_is_killed_is_away(start_consul: StartAgent) -> None:
    agent = start_consul()
    async with Consul(agent.address) as client:
        nodes = await client.get("/v1/catalog/nodes")
        waiting = asyncio.create_task(client.get("/v1/catalog/nodes", index=nodes.index, wait_s=60))
        await asyncio.sleep(0)
        agent.kill()
        with pytest.raises(ConsulAwayError, match="start the agent there"):
            await waiting
        with pytest.raises(ConsulAwayError, match="start the agent there"):
            await client.get("/v1/catalog/nodes")


@contextlib.asynccontextmanager
async def answering(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, **site: Any
) -> AsyncIterator[str]:
    """A server that says the same to everybody; its "host:port"."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, **site).start()
        yield "{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        pytest.param(500, b"No cluster leader", ConsulFailedError, "No cluster leader", id="500"),
        pytest.param(429, b"", ConsulFailedError, "429", id="asked too often"),
        pytest.param(403, b"", ConsulForbiddenError, "name a token", id="no token and one needed"),
        pytest.param(404, b"", ConsulMissingError, "404", id="nothing there"),
        pytest.param(400, b"what?", ConsulRefusedError, "what[?]", id="a question not understood"),
        pytest.param(301, b"", ConsulRefusedError, "301", id="a redirect is not followed"),
        pytest.param(200, b"<html>", ConsulRefusedError, "not JSON", id="a page for people"),
    ],
)
async def test_each_way_to_fail_is_told_apart(
    status: int, body: bytes, kind: type[ConsulError], says: str
) -> None:
    async with answering(status, body) as address, Consul(f"http://{address}") as client:
        with pytest.raises(kind, match=says):
            _ = (await client.get("/v1/catalog/services")).body


async def test_an_index_that_is_no_number_is_refused() -> None:
    async with (
        answering(200, b"{}", {"X-Consul-Index": "many"}) as address,
        Consul(f"http://{address}") as client,
    ):
        with pytest.raises(ConsulRefusedError, match="are no numbers"):
            await client.get("/v1/catalog/services")


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Consul(f"http://127.0.0.1:{port}", margin_s=0.1) as client:
            with pytest.raises(ConsulAwayError, match=r"no answer within 0\.1 s"):
                await client.get("/v1/catalog/services")
        for writer in writers:
            writer.close()


async def test_tls_trusts_what_it_is_told_to_and_shows_its_own_certificate(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("client.lan")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with answering(200, b"[]", ssl_context=context) as address:
        url = f"https://{address}"
        ca, pem = tmp_path / "ca.pem", tmp_path / "own.pem"
        async with Consul(url, ca=ca, cert=pem, key=pem) as client:
            assert (await client.get("/v1/catalog/nodes")).body == []
        async with Consul(url) as stranger:
            with pytest.raises(ConsulRefusedError, match="with `ca`"):
                await stranger.get("/v1/catalog/nodes")
    with pytest.raises(ConsulRefusedError, match=r"nothing\.pem"):
        Consul("https://localhost", ca=tmp_path / "nothing.pem")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        pytest.param("http://127.0.0.1:8500", "", id="the usual one"),
        pytest.param("https://consul.lan", "", id="a name without a port"),
        pytest.param("127.0.0.1:8500", "must begin with http://", id="no scheme"),
        pytest.param("http://:8500", "name a host", id="no host"),
        pytest.param("http://h:port", "is no URL", id="a port that is no number"),
        pytest.param("http://a:b@h:1", "token_file", id="a password in it"),
        pytest.param("http://h:8500/ui", "must end after the port", id="a page of it"),
    ],
)
def test_an_address_is_looked_at(address: str, says: str) -> None:
    assert says in address_problem(address)
    assert bool(says) == bool(address_problem(address))
