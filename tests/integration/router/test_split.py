"""A split over real sockets: shares, callers that stay, a guard that stops what is worse."""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Handle, Mesh, Seen, backend, echo, infer, mesh, until

from aiflow_router.config.file import parse_policy
from aiflow_router.policy.edition import edition
from aiflow_router.routing.split import Sides
from aiflow_sdk import errors, status

PREFIX = "/inference.GRPCInferenceService"
INFER, STREAM, META = (
    f"{PREFIX}/ModelInfer",
    f"{PREFIX}/ModelStreamInfer",
    f"{PREFIX}/ModelMetadata",
)
STEP = b"\x22\x0d\x0a\x0bsequence_id"


@asynccontextmanager
async def split(
    route: str, handles: Mapping[str, Handle], *, keys: tuple[str, ...] = ()
) -> AsyncIterator[Mesh]:
    """A route of model `a` with `route`, and a backend for each model."""
    listed = [
        f"{{name: {name}, tenant: {name}, sha256: {hashlib.sha256(name.encode()).hexdigest()}, "
        "may: [call, register]}"
        for name in keys
    ]
    config = f"routes: [{{match: {{model: a}}, {route}}}]\nauth: {{keys: [{', '.join(listed)}]}}"
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh(config))
        for name, handle in handles.items():
            methods = dict.fromkeys(("ModelInfer", "ModelStreamInfer", "ModelMetadata"), handle)
            server = await stack.enter_async_context(backend(**methods))
            await m.register(server.address, models=(name,), backend=name)
        yield m


async def side(m: Mesh, request: bytes = b"", *, method: str = INFER, **metadata: str) -> str:
    """The model that answered."""
    headers = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    call = m.channel.unary_unary(method)(request or infer("a"), timeout=5, metadata=headers)
    answer = await call
    by = str(dict(tuple(await call.trailing_metadata()))["x-aiflow-served-by"]).partition("@")[0]
    assert answer == (request or infer("a")).replace(infer("a"), infer(by))
    return by


async def test_calls_go_to_the_sides_by_weight_under_the_sides_names() -> None:
    async with split("split: {a: 3, b: 1}", {"a": echo, "b": echo}) as m:
        found = Counter([await side(m) for _ in range(400)])
        assert set(found) == {"a", "b"}
        assert found["b"] / 400 == pytest.approx(0.25, abs=0.09)
        text = await m.metrics()
        assert f'aiflow_split_total{{model="a",to="b"}} {found["b"]}.0' in text
        assert 'aiflow_split_share{model="a",to="b"} 0.25' in text
        assert 'aiflow_requests_total{code="OK",model="a",tenant="anonymous"} 400.0' in text


async def test_a_name_that_nothing_serves_may_be_split_into_others() -> None:
    async with split("split: {v1: 1, v2: 1}", {"v1": echo, "v2": echo}) as m:
        assert {await side(m) for _ in range(40)} == {"v1", "v2"}


async def test_a_session_stays_on_its_side() -> None:
    async with split("split: {weights: {a: 1, b: 1}, by: session}", {"a": echo, "b": echo}) as m:
        homes = {}
        for number in range(30):
            name = f"session-{number}"
            sides = {await side(m, x_aiflow_session=name) for _ in range(4)}
            assert len(sides) == 1
            homes[name] = sides.pop()
        assert set(homes.values()) == {"a", "b"}
        assert {await side(m) for _ in range(40)} == {"a", "b"}  # Those without one.


async def test_a_tenant_stays_on_its_side() -> None:
    tenants = tuple(f"tenant-{number}" for number in range(12))
    route = "split: {weights: {a: 1, b: 1}, by: tenant}"
    async with split(route, {"a": echo, "b": echo}, keys=tenants) as m:
        homes = {tenant: {await side(m, x_api_key=tenant) for _ in range(4)} for tenant in tenants}
        assert all(len(sides) == 1 for sides in homes.values())
        assert set.union(*homes.values()) == {"a", "b"}


async def test_a_side_without_an_endpoint_is_not_passed_over_silently() -> None:
    async with split("split: {a: 1, b: 1}", {"a": echo}) as m:
        ends: Counter[str] = Counter()
        for _ in range(60):
            try:
                ends[await side(m)] += 1
            except grpc.aio.AioRpcError as failure:
                error = status.from_rpc_error(failure)
                assert isinstance(error, errors.NoEndpointError)
                assert '"b"' in error.message
                ends["NO_ENDPOINT"] += 1
        assert ends["a"] > 10 < ends["NO_ENDPOINT"]


async def test_a_side_that_fails_falls_back_to_the_old_one() -> None:
    async with split("split: {a: 1, b: 1}, fallback: [a, c]", {"a": echo, "c": echo}) as m:
        assert {await side(m) for _ in range(40)} == {"a"}
        assert 'aiflow_fallback_total{from="b",reason="no_endpoint",to="a"}' in await m.metrics()


async def test_a_stream_is_of_one_side_as_a_whole() -> None:
    async with split("split: {a: 1, b: 1}", {"a": echo, "b": echo}) as m:
        seen = set()
        for _ in range(30):
            call = m.channel.stream_stream(STREAM)()
            answers = set()
            for _ in range(3):
                await call.write(infer("a"))
                answers.add(await call.read())
            await call.done_writing()
            assert len(answers) == 1
            seen |= answers
        assert seen == {infer("a"), infer("b")}


async def test_questions_and_sequences_go_to_the_side_with_the_greatest_share() -> None:
    async with split("split: {a: 1, b: 2}", {"a": echo, "b": echo}) as m:
        assert {await side(m, method=META) for _ in range(30)} == {"b"}
        assert {await side(m, infer("a", STEP)) for _ in range(30)} == {"b"}


async def test_in_shadow_all_goes_on_as_before_and_is_counted() -> None:
    async with split("split: {weights: {a: 1, b: 1}, mode: shadow}", {"a": echo, "b": echo}) as m:
        assert {await side(m) for _ in range(40)} == {"a"}
        text = await m.metrics()
        assert 'aiflow_split_shadow_total{model="a",to="b"}' in text
        assert "aiflow_split_total{" not in text


GUARD = "split: {weights: {a: 1, b: 1}, guard: {errors: 2%, latency: 1.5x, after: 50}}"


async def broken(seen: Seen, context: Any) -> None:
    await context.read()
    await context.abort(grpc.StatusCode.INTERNAL, "a bug in the new version")


async def jittery(seen: Seen, context: Any, *, mean_s: float = 0.004) -> None:
    message = await context.read()
    await asyncio.sleep(random.expovariate(1 / mean_s))
    await context.write(message)


async def slow(seen: Seen, context: Any) -> None:
    await jittery(seen, context, mean_s=0.08)


async def late(seen: Seen, context: Any) -> None:
    await context.read()
    await asyncio.sleep(2)


async def load(m: Mesh, *, calls: int, due_s: float = 5) -> Counter[str]:
    """How that many calls ended, 8 at a time."""
    ends: Counter[str] = Counter()
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            call = m.channel.unary_unary(INFER)(infer("a"), timeout=due_s)
            try:
                ends[(await call)[2:].decode()] += 1
            except grpc.aio.AioRpcError as failure:
                ends[failure.code().name] += 1

    await asyncio.gather(*(caller() for _ in range(8)))
    return ends


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        pytest.param(broken, "errors", id="it fails"),
        pytest.param(slow, "latency", id="it is slow"),
        pytest.param(late, "errors", id="it answers past the callers' deadline"),
    ],
)
async def test_a_bad_canary_is_stopped_at_once(handle: Handle, reason: str) -> None:
    async with split(GUARD, {"a": jittery, "b": handle}) as m:
        sides = m.router.front.table.courses["a"].sides
        assert sides is not None
        due_s = 0.1 if handle is late else 5
        started_s = time.monotonic()
        while not sides.stopped and time.monotonic() < started_s + 20:
            await load(m, calls=40, due_s=due_s)
        assert sides.stopped["b"].reason == reason
        assert sides.tallies["b"].calls < 250
        assert set(await load(m, calls=50)) == {"a"}
        text = await m.metrics()
        assert 'aiflow_split_share{model="a",to="b"} 0.0' in text
        assert 'aiflow_split_share{model="a",to="a"} 1.0' in text
        assert f'aiflow_split_stopped_total{{model="a",reason="{reason}",to="b"}} 1.0' in text
        # It is a change of the policy, which says why.
        policies = m.router.policies
        await until(lambda: policies.current.source == "admin")
        (route,) = json.loads(policies.current.text)["routes"]
        assert route["split"]["weights"] == {"a": 1, "b": 0}
        assert policies.current.origin.startswith("the guard of a: b stopped, ")


async def test_a_guard_in_shadow_counts_and_stops_nothing() -> None:
    route = GUARD.replace("after: 50", "after: 50, mode: shadow")
    would = 'aiflow_split_stopped_shadow_total{model="a",reason="errors",to="b"} 1.0'
    async with split(route, {"a": echo, "b": broken}) as m:
        before = m.router.policies.current.version
        await load(m, calls=400)
        assert set(await load(m, calls=40)) == {"a", "INTERNAL"}
        text = await m.metrics()
        assert would in text
        assert 'aiflow_split_share{model="a",to="b"} 0.5' in text
        assert "aiflow_split_stopped_total{" not in text
        assert m.router.policies.current.version == before


async def test_an_equal_canary_goes_on() -> None:
    random.seed(3)
    async with split(GUARD, {"a": jittery, "b": jittery}) as m:
        ends = await load(m, calls=1200)
        assert set(ends) == {"a", "b"}
        sides = m.router.front.table.courses["a"].sides
        assert sides is not None
        assert not sides.stopped
        assert min(tally.times.total for tally in sides.tallies.values()) > 400


async def test_a_step_is_a_change_of_the_policy_and_lets_a_stopped_side_begin_anew() -> None:
    route = GUARD.replace("b: 1}", "b: 1, c: 1}")
    async with split(route, {"a": echo, "b": broken, "c": echo}) as m:

        def sides() -> Sides:
            found = m.router.front.table.courses["a"].sides
            assert found is not None
            return found

        async def put(text: str) -> None:
            document = parse_policy(f"routes: [{{match: {{model: a}}, {text}}}]")
            found = edition(document, source="admin", origin="test", since_s=time.time())
            await m.router.policies.put(found)

        await load(m, calls=600)
        await until(lambda: not sides().split.weights["b"])
        assert sides().split.guard is not None  # It goes on to look at c.
        tallies = sides().tallies
        await put(f"timeout: 4s, {route.replace('b: 1', 'b: 0')}")
        assert sides().tallies is tallies  # The split is as it was: so is what is known of it.
        assert set(await load(m, calls=40)) == {"a", "c"}
        await put("split: {a: 1, b: 3}")
        assert not sides().stopped
        assert set(await load(m, calls=40)) == {"a", "INTERNAL"}
        assert 'aiflow_split_share{model="a",to="b"} 0.75' in await m.metrics()
        await put("timeout: 3s")
        assert set(await load(m, calls=40)) == {"a"}
        assert "aiflow_split_share{" not in await m.metrics()


async def test_errors_that_a_fallback_hides_count_all_the_same() -> None:
    async def away(seen: Seen, context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async with split(GUARD + ", fallback: [a]", {"a": echo, "b": away}) as m:
        ends = await load(m, calls=400)
        assert set(ends) == {"a"}
        await until(lambda: m.router.policies.current.origin.startswith("the guard of a: b "))
