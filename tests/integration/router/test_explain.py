"""Explain and Replay over real sockets: what would become of a call, and what became of one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import (
    Backend,
    Handle,
    Mesh,
    Seen,
    backend,
    backend_process,
    echo,
    infer,
    mesh,
    until,
)

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc
from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
READY = registry_pb2.ENDPOINT_STATE_READY


def route(policy: str) -> str:
    return f"routes: [{{match: {{model: m}}, {policy}}}]\n"


def stub(m: Mesh) -> explain_pb2_grpc.ExplainServiceAsyncStub:
    made: explain_pb2_grpc.ExplainServiceAsyncStub = explain_pb2_grpc.ExplainServiceStub(m.channel)
    return made


async def explained(m: Mesh, model: str = "m", **asked: Any) -> explain_pb2.ExplainResponse:
    return await stub(m).Explain(explain_pb2.ExplainRequest(model=model, **asked))


async def endpoint(m: Mesh, address: str, **asked: Any) -> explain_pb2.CandidateEndpoint:
    told = await explained(m, **asked)
    return next(one for one in told.candidates[0].endpoints if one.address == address)


async def replayed(m: Mesh, request_id: str) -> explain_pb2.Trace:
    answer = await stub(m).Replay(explain_pb2.ReplayRequest(request_id=request_id))
    return answer.traces[0]


async def failure_of(call: Any) -> errors.AiflowError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.from_rpc_error(caught.value)


async def call(m: Mesh, request_id: str, *, priority: str = "", timeout_s: float = 10.0) -> None:
    metadata = [("x-request-id", request_id), ("x-aiflow-priority", priority or "normal")]
    with contextlib.suppress(grpc.aio.AioRpcError):
        await m.channel.unary_unary(INFER)(infer("m"), metadata=metadata, timeout=timeout_s)


@asynccontextmanager
async def serving(m: Mesh, handle: Handle | None = None, **register: Any) -> AsyncIterator[Backend]:
    """A backend of model `m` that is registered."""
    methods = {} if handle is None else {"ModelInfer": handle, "ModelStreamInfer": handle}
    async with backend(**methods) as server:
        await m.register(server.address, models=("m",), services=(), **register)
        yield server


async def busy(_: Seen, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")


async def broken(_: Seen, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "out of order")


class Held:
    """A backend whose calls stay until they are let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.go = asyncio.Event()

    async def __call__(self, _: Seen, context: Any) -> None:
        message = await context.read()
        self.inside += 1
        try:
            await self.go.wait()
        finally:
            self.inside -= 1
        await context.write(message)


async def test_a_route_and_defaults_are_told_apart() -> None:
    async with mesh(route("timeout: 2s, retry: {attempts: 3}")) as m, serving(m) as server:
        told = await explained(m)
        assert told.matched == "the route with `match: {model: m}`"
        assert {line.topic for line in told.policy if not line.by_default} == {"timeout", "retry"}
        assert told.verdict == "goes to the one endpoint of m"
        assert not told.refusals
        (one,) = told.candidates[0].endpoints
        assert (one.address, one.state, one.pickable, one.why) == (server.address, READY, True, "")
        await m.register(server.address, models=("other",), services=(), backend="o")
        other = await explained(m, "other")
        assert other.by_default
        assert all(line.by_default for line in other.policy)
        assert not server.seen  # Nothing was sent.


async def test_split_and_fallback_are_told_and_where_a_call_goes_on() -> None:
    config = route("split: {m: 90, m2: 10}, fallback: [lite]")
    async with mesh(config) as m, serving(m), backend() as lite:
        await m.register(lite.address, models=("lite",), services=(), backend="lite")
        told = await explained(m)
        assert [(one.name, one.role, len(one.endpoints)) for one in told.candidates] == [
            ("m", "90% of the calls", 1),
            ("m2", "10% of the calls", 0),
            ("lite", "fallback 1", 1),
        ]
        assert told.verdict == (
            "90%: goes to the one endpoint of m; "
            "10%: m2 is passed over (no_endpoint), goes to the one endpoint of lite"
        )
        (refusal,) = told.refusals
        assert (refusal.when, refusal.reason) == ("every call for m2 now", "NO_ENDPOINT")
        assert refusal.goes_on_to == "lite"
        assert {gate.name for gate in told.gates} == {"m", "lite"}
        trailing = await m.channel.unary_unary(INFER)(infer("m")).trailing_metadata()
        assert told.policy_version == trailing["x-aiflow-policy-version"]


async def test_a_caller_who_is_kept_is_shown_its_own_side() -> None:
    config = route("split: {weights: {m: 50, m2: 50}, by: tenant}")
    async with mesh(config) as m, serving(m) as server:
        await m.register(server.address, models=("m2",), services=(), backend="b2")
        firsts = set()
        for tenant in "abcdefgh":
            told = await explained(m, tenant=tenant)
            first, other = told.candidates
            assert other.role == "gets none of these"
            assert told.verdict == f"goes to the one endpoint of {first.name}"
            firsts.add(first.name)
        assert firsts == {"m", "m2"}


async def test_an_unknown_name_ends_as_its_call_would() -> None:
    async with mesh() as m, serving(m) as server:
        await m.register(server.address, models=("detector",), services=(), backend="d")
        missing = await failure_of(explained(m, "detectr"))
        assert (missing.code, missing.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert "did you mean detector?" in missing.message
        request = explain_pb2.ExplainRequest(service="a.Nobody")
        assert (await failure_of(stub(m).Explain(request))).reason == "SERVICE_NOT_FOUND"
        both = explain_pb2.ExplainRequest(model="m", service="a.B", priority="urgent")
        bad = await failure_of(stub(m).Explain(both))
        assert set(bad.violations) == {"model", "priority"}


async def test_a_name_without_endpoints_says_what_its_calls_are_told() -> None:
    async with mesh(route("timeout: 2s")) as m:
        told = await explained(m)
        (refusal,) = told.refusals
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "NO_ENDPOINT")
        assert told.verdict.startswith("refused: UNAVAILABLE/NO_ENDPOINT")
        assert not told.candidates[0].endpoints


async def test_a_killed_endpoint_is_out_and_why() -> None:
    async with (
        mesh("health: {active: false}") as m,
        backend_process() as (address, process),
        serving(m),
    ):
        await m.register(address, models=("m",), services=())
        process.kill()
        await process.wait()
        for i in range(8):
            await call(m, f"r{i}")
        one = await endpoint(m, address)
        assert one.state == registry_pb2.ENDPOINT_STATE_UNREACHABLE
        assert not one.pickable
        assert "no connection to it, once" in one.why
        assert 0 < one.changes_in_s <= 1.0
        assert (await explained(m)).verdict == "goes to the one endpoint of m"
        tried = [await replayed(m, f"r{i}") for i in range(8)]
        found = next(trace for trace in tried if trace.steps)
        assert [(step.outcome, step.because) for step in found.steps] == [
            ("UNREACHABLE", ""),
            ("OK", "no connection to the one before"),
        ]


async def test_an_ejected_endpoint_says_until_when() -> None:
    config = "ejection: {consecutive_faults: 2}\nhealth: {active: false}"
    async with mesh(config) as m, serving(m, broken) as bad, serving(m):
        for i in range(20):
            await call(m, f"r{i}")
        one = await endpoint(m, bad.address)
        assert one.state == registry_pb2.ENDPOINT_STATE_EJECTED
        assert "ejection 1 in a row" in one.why
        assert 25 < one.changes_in_s <= 30
        assert not one.pickable


async def test_where_none_is_fit_all_are_used_and_said_to_be() -> None:
    config = "ejection: {consecutive_faults: 1}\nhealth: {active: false}"
    async with mesh(config) as m, serving(m, broken), serving(m, broken):
        for load in m.router.front.table.model("m").loads:
            load.eject(why="a test", now_s=asyncio.get_running_loop().time(), for_s=30)
        told = await explained(m)
        assert told.candidates[0].panic
        assert all(one.pickable for one in told.candidates[0].endpoints)
        assert told.verdict == "no endpoint of m is fit: it is tried at any of 2"
        assert [refusal.reason for refusal in told.refusals] == ["NO_ENDPOINT"]


async def test_a_draining_endpoint_is_listed_and_gets_nothing() -> None:
    async with mesh() as m, serving(m), backend() as leaving:
        lease = await m.register(leaving.address, models=("m",), services=())
        await m.registry.Renew(
            registry_pb2.RenewRequest(lease_id=lease, state=registry_pb2.ENDPOINT_STATE_DRAINING)
        )
        one = await endpoint(m, leaving.address)
        assert one.state == registry_pb2.ENDPOINT_STATE_DRAINING
        assert not one.pickable
        assert "its server says so" in one.why


async def test_a_full_gate_says_who_waits_how_long_and_who_is_refused() -> None:
    held = Held()
    config = route("timeout: 8s, overload: {limit: 2, queue: 2}")
    async with mesh(config) as m, serving(m, held):
        held.go.set()
        await call(m, "quick")
        gate = next(found for name, found in m.router.front.table.gates() if name == "m").unary
        gate.answer_s = 1.0
        held.go.clear()
        async with asyncio.TaskGroup() as calls:
            for i in range(3):
                calls.create_task(call(m, f"r{i}"))
            await until(lambda: gate.waiting == 1)
            told = await explained(m)
            (shown,) = told.gates
            assert (shown.limit, shown.inflight, shown.waiting, shown.ahead) == (2, 2, 1, 1)
            assert shown.wait_s == pytest.approx(1.0)
            assert told.verdict == (
                "waits about 1 s behind 1 others, then goes to the one endpoint of m"
            )
            (hasty,) = told.refusals
            assert hasty.when == "a call with less than 2 s to its deadline"
            assert hasty.reason == "DEADLINE_UNREACHABLE"
            late = await explained(m, deadline_s=0.5)
            assert late.verdict.startswith("refused: UNAVAILABLE/DEADLINE_UNREACHABLE")
            calls.create_task(call(m, "r3"))
            await until(lambda: gate.waiting == 2)
            full = await explained(m)
            assert full.verdict.startswith("refused: UNAVAILABLE/OVERLOADED")
            assert [one.when.partition(" now")[0] for one in full.refusals] == [
                "such a call",
                "a call of priority low",
            ]
            assert (await explained(m, priority="high")).verdict.startswith("waits about")
            refused_before = dict(gate.refused)
            await explained(m)
            assert dict(gate.refused) == refused_before  # Asking counts nothing.
            await call(m, "shed")
            held.go.set()
        shed = json.loads((await replayed(m, "shed")).logged)
        assert (shed["reason"], shed["endpoint"]) == ("OVERLOADED", "")
        assert (await replayed(m, "r2")).queued_s > 0


async def test_a_retried_call_is_replayed_attempt_by_attempt() -> None:
    async with mesh(route("retry: {attempts: 2}")) as m, serving(m, busy), serving(m):
        ids = [f"r{i}" for i in range(12)]
        for one in ids:
            await call(m, one)
        traces = [await replayed(m, one) for one in ids]
        found = next(trace for trace in traces if trace.steps)
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
    async with mesh(route("hedge: {after: 50ms}")) as m, serving(m, held), serving(m):
        for i in range(20):
            await call(m, f"r{i}")
        traces = [await replayed(m, f"r{i}") for i in range(20)]
        found = next(trace for trace in traces if trace.steps)
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
