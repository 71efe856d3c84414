"""Replay over real sockets: what became of a call, attempt by attempt."""

from __future__ import annotations

import hashlib
import json

import grpc
import grpc.aio
import pytest
from integration.router.explain_kit import (
    INFER,
    broken,
    call,
    found_trace,
    replayed,
    route,
    serving,
    stub,
)
from integration.router.kit import Handle, Held, backend, busy, echo, failure_of, infer, mesh, until

from aiflow.admin.v1 import explain_pb2

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


async def test_a_retried_call_is_replayed_attempt_by_attempt() -> None:
    async with mesh(route("retry: {attempts: 2}")) as m, serving(m, busy), serving(m):
        found = await found_trace(m, lambda trace: trace.steps)
        first, second = found.steps
        assert (first.outcome, first.because) == ("UNAVAILABLE", "")
        assert (second.outcome, second.because) == ("OK", "retry of UNAVAILABLE")
        assert 0 <= first.at_s < second.at_s
        assert first.endpoint != second.endpoint
        logged = json.loads(found.logged)
        assert (logged["attempts"], logged["code"]) == (2, "OK")
        assert logged["endpoint"] == second.endpoint


@pytest.mark.parametrize(
    ("handle", "policy", "decided"),
    [
        pytest.param(busy, "retry: {attempts: 2}", "no endpoint is left", id="nobody else"),
        pytest.param(broken, "retry: {attempts: 2}", "", id="not one to be retried"),
    ],
)
async def test_a_failed_call_says_why_no_other_was_tried(
    handle: Handle, policy: str, decided: str
) -> None:
    async with mesh(route(policy)) as m, serving(m, handle):
        await call(m, "failed")
        trace = await replayed(m, "failed")
        assert [step.outcome for step in trace.steps if step.endpoint] != ["OK"]
        said = [step.because for step in trace.steps if not step.endpoint]
        assert said == ([] if not decided else [f"not retried: no attempt or {decided}"])
        assert json.loads(trace.logged)["reason"] == "BACKEND_STATUS"


@pytest.mark.parametrize("lite_answers", [True, False])
async def test_a_call_that_fell_back_tells_from_whom_and_why(lite_answers: bool) -> None:
    config = route("retry: {attempts: 1}, fallback: [lite]")
    async with (
        mesh(config) as m,
        serving(m, busy) as server,
        backend(ModelInfer=echo) as lite,
    ):
        if lite_answers:
            await m.register(lite.address, models=("lite",), services=(), backend="lite")
        await call(m, "fell")
        trace = await replayed(m, "fell")
        said = [(step.endpoint, step.outcome, step.because) for step in trace.steps]
        first = f"m@{server.address}"
        assert said[0] == (first, "UNAVAILABLE", "")
        assert ("", "", "m did not answer (unavailable): lite is asked") in said
        if lite_answers:
            assert said[-1][:2] == (f"lite@{lite.address}", "OK")
        logged = json.loads(trace.logged)
        assert logged["code"] == ("OK" if lite_answers else "UNAVAILABLE")
        assert logged["fallback"] == "unavailable"


async def test_a_hedged_call_tells_both() -> None:
    held = Held()
    async with mesh(route("hedge: {after: 50ms}")) as m, serving(m, held) as slow, serving(m):
        asked_first = (f"m@{slow.address}", "")

        def is_hedged(trace: explain_pb2.Trace) -> bool:
            # On a busy machine the other one may be asked first, and be late.
            return asked_first in [(step.endpoint, step.because) for step in trace.steps]

        found = await found_trace(m, is_hedged)
        decision = next(step for step in found.steps if not step.endpoint)
        assert "another one is asked too" in decision.because
        assert {(step.outcome, step.because) for step in found.steps if step.endpoint} == {
            ("CANCELLED", ""),
            ("OK", "hedge"),
        }


async def test_a_stream_that_fails_is_replayed() -> None:
    async with mesh() as m, serving(m, busy):
        stream = m.channel.stream_stream(STREAM)(
            iter([infer("m")]), metadata=[("x-request-id", "stream")]
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        await until(lambda: not m.inflight())
        trace = await replayed(m, "stream")
        assert [step.outcome for step in trace.steps] == ["UNAVAILABLE"]
        assert trace.router_s == -1


async def test_calls_that_share_an_id_are_all_shown_the_newest_first() -> None:
    async with mesh() as m, serving(m):
        for _ in range(3):
            await call(m, "same")
        answer = await stub(m).Replay(explain_pb2.ReplayRequest(request_id="same"))
        times = [json.loads(trace.logged)["timestamp"] for trace in answer.traces]
        assert len(times) == 3
        assert times == sorted(times, reverse=True)
        gone = await failure_of(stub(m).Replay(explain_pb2.ReplayRequest(request_id="nobody's")))
        assert (gone.code, gone.reason) == ("NOT_FOUND", "REQUEST_NOT_FOUND")


async def test_who_may_ask_and_no_key_is_shown() -> None:
    def key(name: str, may: str) -> str:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return f"{{name: {name}, tenant: shop, sha256: {digest}, may: [{may}]}}"

    auth = f"auth: {{mode: required, keys: [{key('caller', 'call')}, {key('boss', 'admin')}]}}\n"
    async with mesh(auth) as m:
        calls = {"authorization": "Bearer caller"}
        with pytest.raises(grpc.aio.AioRpcError):
            await m.channel.unary_unary(INFER)(
                infer("m"), metadata=[*calls.items(), ("x-request-id", "mine")]
            )
        request = explain_pb2.ReplayRequest(request_id="mine")
        forbidden = await failure_of(stub(m).Replay(request, metadata=tuple(calls.items())))
        assert (forbidden.code, forbidden.reason) == ("PERMISSION_DENIED", "RIGHT_MISSING")
        answer = await stub(m).Replay(request, metadata=(("authorization", "Bearer boss"),))
        assert "Bearer" not in str(answer)
        assert json.loads(answer.traces[0].logged)["tenant"] == "shop"
