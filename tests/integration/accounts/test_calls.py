"""Calls through a router that cost credits: who is answered has paid, and nobody else."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fixtures.postgres import StartPostgres
from google.rpc import error_details_pb2, status_pb2
from integration.accounts.paying import INFER, STREAM, paying
from integration.router.kit import Seen, infer, until

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_router.accounts import rows
from aiflow_router.accounts.operation import Settle
from aiflow_router.accounts.report import Filter, summed
from aiflow_sdk import errors, status

USED = "x-aiflow-used"


async def fails(_: Seen, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "broken")


def uses(text: str) -> Any:
    async def answer(_: Seen, context: Any) -> None:
        await context.read()
        await context.write(b"done")
        context.set_trailing_metadata(((USED, text),))

    return answer


async def hangs(_: Seen, context: Any) -> None:
    await context.read()
    await asyncio.sleep(30)


async def begins(_: Seen, context: Any) -> None:
    await context.read()
    await context.write(b"first")
    await asyncio.sleep(30)


async def test_a_call_pays_its_price(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path) as found:
        assert await found.call() == infer("m")
        assert await found.left() == 8
        assert await found.kinds() == ["top_up", "hold", "settle"]
        found.mesh.router.front._journal.settle()
        assert [json.loads(line)["credits"] for line in found.mesh.log] == [2.0]


async def test_its_caller_is_told_what_it_paid(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'aiflow.db'}"
    async with paying(url, tmp_path, ModelInfer=uses("tokens=25")) as found:
        call = found.mesh.channel.unary_unary(INFER)(
            infer("t"), metadata=found.metadata(units="tokens=50")
        )
        assert await call == b"done"
        told = dict(tuple(await call.trailing_metadata()))
        assert told["x-aiflow-credits"] == "1.25"
        assert {"x-aiflow-used", "x-request-id", "x-aiflow-served-by"} <= set(told)
        stream = found.mesh.channel.stream_stream(STREAM)(metadata=found.metadata())
        await stream.write(infer("m"))
        await stream.done_writing()
        assert await stream.read() == infer("m")
        assert await stream.read() is grpc.aio.EOF
        assert dict(tuple(await stream.trailing_metadata()))["x-aiflow-credits"] == "2"
        free = found.mesh.channel.unary_unary(INFER)(infer("free"), metadata=found.metadata())
        await free
        assert "x-aiflow-credits" not in dict(tuple(await free.trailing_metadata()))


async def test_a_price_may_change_while_the_router_runs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'aiflow.db'}"
    async with paying(url, tmp_path) as found:
        root = await asyncio.to_thread((tmp_path / "admin.key").read_text)
        policies: Any = policy_pb2_grpc.PolicyServiceStub(found.mesh.channel)

        async def put(routes: str) -> None:
            request = policy_pb2.SetPolicyRequest(document=f"routes: {routes}")
            await policies.Set(request, metadata=[("x-api-key", root.strip())])

        for price, left in (("", 10), (", price: 3", 7), (", price: 0.5", 6.5), ("", 6.5)):
            await put(f"[{{match: {{model: m}}, timeout: 9s{price}}}]")
            await found.call()
            assert await found.left() == left


async def test_a_service_has_a_price_too(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path) as found:
        await found.call(method="/a.Echo/Echo")
        assert await found.left() == 9.5


async def test_a_call_that_fails_pays_nothing(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path, ModelInfer=fails) as found:
        assert (await found.refused()).code == "INTERNAL"
        assert await found.left() == 10
        assert await found.kinds() == ["top_up", "hold", "release"]


async def test_units_are_held_as_declared_and_paid_as_used(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path, ModelInfer=uses("tokens=250,gpu-ms=7")) as found:
        await found.call("t", units="tokens=400")
        assert await found.left() == 10 - 1 - 2.5
        # More than it had said: it pays what was held, and the rest is counted.
        await found.call("t", units="tokens=100")
        assert await found.left() == 6.5 - 2
        assert found.ledger.over == 1_500_000
        refused = await found.refused("t")
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "BAD_INPUT")
        assert "x-aiflow-units: tokens=NUMBER" in refused.message
        assert await found.left() == 4.5


async def test_who_has_too_little_is_refused_and_told(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path, pool=3) as found:
        await found.call()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await found.call()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(tuple(caught.value.trailing_metadata() or ()))
        told = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        over = error_details_pb2.QuotaFailure()
        assert [packed.Unpack(over) for packed in told.details].count(True) == 1
        assert over.violations[0].subject == "pool:acme"
        assert not any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in told.details)
        refused = await found.refused()
        assert isinstance(refused, errors.RateLimitedError)
        assert (refused.reason, refused.subject) == ("QUOTA_EXCEEDED", "pool:acme")
        assert "may cost 2 credits, and pool:acme has 1" in refused.message
        assert len(found.server.seen) == 1
        assert 'aiflow_credit_alerts_total{level="none",tenant="acme"} 1.0' in (
            await found.mesh.metrics()
        )
        await found.top_up(10)
        await found.call()


async def test_an_id_is_paid_once(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path) as found:
        await found.call(request_id="mine")
        refused = await found.refused(request_id="mine")
        assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "DUPLICATE_REQUEST")
        assert await found.left() == 8
        await asyncio.gather(
            *(found.call(request_id="at-once") for _ in range(4)), return_exceptions=True
        )
        assert await found.left() == 6
        # What costs nothing may have any id, as ever.
        await found.call("free", request_id="mine")


async def test_what_costs_nothing_asks_no_database(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path) as found:
        before = found.ledger.commits.commits
        for _ in range(5):
            await found.call("free")
        assert found.ledger.commits.commits == before


async def test_a_caller_who_goes_away_pays_nothing(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path, ModelInfer=hangs) as found:
        call = found.mesh.channel.unary_unary(INFER)(infer("m"), metadata=found.metadata())
        await until(lambda: bool(found.server.seen))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: found.mesh.inflight() == 0)
        assert await found.left() == 10


async def test_a_deadline_that_passes_costs_nothing(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path, ModelInfer=hangs) as found:
        with pytest.raises(grpc.aio.AioRpcError):
            await found.mesh.channel.unary_unary(INFER)(
                infer("m"), metadata=found.metadata(), timeout=0.5
            )
        await until(lambda: found.mesh.inflight() == 0)
        assert await found.left() == 10


async def test_a_stream_pays_at_its_end(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path) as found:
        stream = found.mesh.channel.stream_stream(STREAM)(metadata=found.metadata())
        await stream.write(infer("m"))
        assert await stream.read() == infer("m")
        assert await found.left("held:acme") == 2
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await found.left() == 8


async def test_who_cancels_a_stream_that_has_begun_to_answer_pays(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path, ModelStreamInfer=begins) as found:
        stream = found.mesh.channel.stream_stream(STREAM)(metadata=found.metadata())
        await stream.write(infer("m"))
        assert await stream.read() == b"first"
        stream.cancel()
        await until(lambda: found.mesh.inflight() == 0)
        assert await found.left() == 8


@pytest.mark.parametrize(
    ("method", "left"),
    [
        pytest.param(STREAM, 8, id="a stream, whose caller has all of the answer, pays"),
        pytest.param(INFER, 10, id="a unary call, whose caller has nothing, does not"),
    ],
)
async def test_who_cancels_a_call_while_it_is_paid(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, left: int
) -> None:
    settling, go_on = asyncio.Event(), asyncio.Event()
    applied = rows.applied

    async def slow(engine: Any, operations: Any, **given: Any) -> Any:
        if any(isinstance(one, Settle) for one in operations):
            settling.set()
            await go_on.wait()
        return await applied(engine, operations, **given)

    monkeypatch.setattr(rows, "applied", slow)
    async with paying(storage_url, tmp_path) as found:
        stream = found.mesh.channel.stream_stream(method)(metadata=found.metadata())
        await stream.write(infer("m"))
        await stream.done_writing()
        await settling.wait()
        stream.cancel()
        # The call has heard of it: it waits to be paid, or has ended.
        await until(
            lambda: (
                any(task.cancelling() for task in asyncio.all_tasks()) or found.mesh.inflight() == 0
            )
        )
        go_on.set()
        await until(lambda: found.mesh.inflight() == 0)
        await until(lambda: not found.ledger.commits.waiting)
        assert await found.left() == left


async def test_a_stream_that_has_begun_to_answer_is_paid_though_its_key_is_withdrawn(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path, ModelStreamInfer=begins) as found:
        stream = found.mesh.channel.stream_stream(STREAM)(metadata=found.metadata())
        await stream.write(infer("m"))
        assert await stream.read() == b"first"
        await found.office.change_member("acme", "ann", disabled_s=time.time())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert status.from_rpc_error(caught.value).reason == "KEY_WITHDRAWN"
        assert await found.left() == 8


async def test_who_cancels_a_stream_before_its_answer_does_not(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path, ModelStreamInfer=hangs) as found:
        stream = found.mesh.channel.stream_stream(STREAM)(metadata=found.metadata())
        await stream.write(infer("m"))
        await until(lambda: bool(found.server.seen))
        stream.cancel()
        await until(lambda: found.mesh.inflight() == 0)
        assert await found.left() == 10


async def test_a_call_pays_for_what_it_asked_whoever_answers(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path) as found:
        assert await found.call("worse") == infer("free")
        assert await found.left() == 7


async def test_an_answer_from_the_cache_costs_the_call_alone(
    storage_url: str, tmp_path: Path
) -> None:
    async with paying(storage_url, tmp_path) as found:
        await found.call("cached")
        assert await found.left() == 8
        await found.call("cached")
        assert await found.left() == 7


async def test_usage_has_what_was_paid_and_used(storage_url: str, tmp_path: Path) -> None:
    async with paying(storage_url, tmp_path, ModelInfer=uses("tokens=30,gpu-ms=5")) as found:
        await found.call("t", units="tokens=50")
        await found.call("free")
        assert (await found.refused("t")).code == "INVALID_ARGUMENT"
        rows: list[Any] = []

        async def written() -> bool:
            rows[:] = await summed(
                found.engine,
                Filter(from_day="0000", to_day="9999"),
                by=("tenant", "department", "member", "model"),
                skip=0,
                most=10,
            )
            return bool(sum(row["calls"] for row in rows) == 3)

        async with asyncio.timeout(5):
            while not await written():  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.05)
        told = {row["model"]: row for row in rows}
        assert (told["t"]["calls"], told["t"]["failed"], told["t"]["credits"]) == (2, 1, 1_300_000)
        assert (told["t"]["tokens"], told["free"]["gpu_ms"]) == (30, 5)
        assert {(row["tenant"], row["department"], row["member"]) for row in rows} == {
            ("acme", "ml", "ann")
        }


async def test_a_database_that_is_away_lets_nobody_call_for_nothing(
    start_postgres: StartPostgres, tmp_path: Path
) -> None:
    server = start_postgres()
    async with paying(server.url(), tmp_path) as found:
        await found.call()
        server.kill()
        refused = await found.refused()
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE")
        assert refused.retry_after_s == 1.0
        await found.call("free")  # Its callers do not notice.
        assert "aiflow_ledger_away 1.0" in await found.mesh.metrics()
        server.start()
        async with asyncio.timeout(10):
            while True:
                try:
                    await found.call()
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
        assert await found.left() == 6
        assert len([seen for seen in found.server.seen if seen.messages == [infer("m")]]) == 2
