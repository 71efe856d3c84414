"""Explain over real sockets: what would become of a call."""

from __future__ import annotations

import asyncio
import json

import pytest
from integration.router.explain_kit import (
    INFER,
    broken,
    call,
    endpoint,
    explained,
    found_trace,
    replayed,
    route,
    serving,
    stub,
)
from integration.router.kit import Held, backend, backend_process, failure_of, infer, mesh, until

from aiflow.admin.v1 import explain_pb2
from aiflow.registry.v1 import registry_pb2

READY = registry_pb2.ENDPOINT_STATE_READY


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
        found = await found_trace(m, lambda trace: trace.steps)
        one = await endpoint(m, address)
        assert one.state == registry_pb2.ENDPOINT_STATE_UNREACHABLE
        assert not one.pickable
        assert "no connection to it, once" in one.why
        assert 0 < one.changes_in_s <= 1.0
        assert (await explained(m)).verdict == "goes to the one endpoint of m"
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
