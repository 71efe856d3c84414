"""`aiflow explain` against a real router: tables, JSON, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner, Result
from integration.router.kit import Mesh, Seen, backend, infer, mesh

from aiflow_sdk.command.main import main

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONFIG = (
    "routes: [{match: {model: detector}, timeout: 2s, balance: peak_ewma}]\nzone: a\n"
    "limits: [{name: shops, per: [tenant], rate: 2/h, burst: 2}]\n"
)


async def busy(_: Seen, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy [b]ee[/b]")


@pytest.fixture
async def running() -> AsyncIterator[Mesh]:
    """One call, `failed`, went to both servers of `detector`, and none answers."""
    async with mesh(CONFIG) as m, backend(ModelInfer=busy) as one, backend(ModelInfer=busy) as two:
        for server in (one, two):
            await m.register(server.address, models=("detector",), services=(), backend="gpu")
        with contextlib.suppress(grpc.aio.AioRpcError):
            await m.channel.unary_unary(INFER)(
                infer("detector"), metadata=[("x-request-id", "failed")]
            )
        yield m


async def run(m: Mesh, *words: str) -> Result:
    arguments = ["explain", *words, "--router", m.router.grpc_address]
    wide = CliRunner(env={"COLUMNS": "250"})
    return await asyncio.to_thread(wide.invoke, main, arguments, prog_name="aiflow")


async def test_a_call_that_might_come_is_explained(running: Mesh) -> None:
    result = await run(running, "--model", "detector", "--tenant", "shop", "--deadline", "1")
    assert result.exit_code == 0
    out = result.output
    assert "model detector: goes to one of 2 endpoints" in out
    assert "route: the route with `match: {model: detector}`" in out
    assert "peak_ewma: the endpoint likely to answer first" in out
    assert out.count("gpu@127.0.0.1:") == 2
    assert "expected" in out  # The strategy measured them.
    assert "0 of 1024 in flight" in out
    assert "retries: 3 more may be made now" in out
    assert re.search(r"shops +2 calls/h .* shops\|shop +2 of 2 ", out)


async def test_what_a_tenant_used_up_is_told_and_what_the_call_would_be(running: Mesh) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):  # The second one.
        await running.channel.unary_unary(INFER)(infer("detector"))
    out = (await run(running, "--model", "detector", "--tenant", "anonymous")).output
    assert re.search(r"shops\|anonymous +0\S* of 2 +[56]\d\S* min .* enough in [23]\d\S* min", out)
    assert "refused: RESOURCE_EXHAUSTED/RATE_LIMITED" in out


async def test_json_has_it_all(running: Mesh) -> None:
    told = json.loads((await run(running, "--model", "detector", "--json")).output)
    assert told["by_default"] is False
    assert told["retry_budget"] == {"inflight": 0, "retrying": 0, "allowed": 3, "left": 3}
    assert [one["state"] for one in told["candidates"][0]["endpoints"]] == [
        "ENDPOINT_STATE_READY"
    ] * 2
    assert told["refusals"] == []


async def test_a_call_that_failed_is_replayed(running: Mesh) -> None:
    result = await run(running, "failed")
    assert result.exit_code == 0
    assert "UNAVAILABLE/BACKEND_STATUS" in result.output
    assert "retry of UNAVAILABLE" in result.output
    assert result.output.count("detector@127.0.0.1:") == 3  # Two attempts, and who ended it.
    (trace,) = json.loads((await run(running, "failed", "--json")).output)["traces"]
    assert trace["logged"]["attempts"] == 2
    assert len([step for step in trace["steps"] if step["endpoint"]]) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--model", "detectr"), 1, "did you mean detector?"),
        (("nobody's",), 1, "NOT_FOUND/REQUEST_NOT_FOUND"),
        ((), 2, "Give a REQUEST_ID, --model or --service."),
        (("--model", "m", "--service", "a.B"), 2, "Give a REQUEST_ID, --model or --service."),
        (("failed", "--model", "m"), 2, "give no other option with it"),
        (("--model", "m", "--method", "X"), 1, "is of a service: name that too"),
        (("--model", "m", "--priority", "urgent"), 2, "urgent"),
    ],
)
async def test_what_cannot_be_explained_is_one_line(
    running: Mesh, words: tuple[str, ...], code: int, says: str
) -> None:
    result = await run(running, *words)
    assert result.exit_code == code
    assert says in result.output
