"""Limits through a real router: who is let in, what is told, and what is given back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from integration.router.kit import Seen, echo, infer, until
from integration.router.limits_kit import ECHO, INFER, STREAM, Limited, keys, limited, of

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_sdk import errors, status

ONE = "{name: one, match: {model: m}, rate: 4/min, burst: 1}"


async def fail(seen: Seen, context: Any) -> None:
    await context.read()
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "asked to fail")


async def hang(_: Seen, context: Any) -> None:
    await context.read()
    await asyncio.sleep(60)


def answers(used: str) -> Any:
    """Echoes once and says what that took."""

    async def handle(_: Seen, context: Any) -> None:
        message = await context.read()
        context.set_trailing_metadata((("x-aiflow-used", used),))
        await context.write(message)

    return handle


async def test_a_call_over_a_limit_is_told_which_and_when_to_come_again() -> None:
    async with limited(f"limits: [{ONE}]") as to:
        trailers = await to.infer()
        assert trailers["x-ratelimit-limit"] == "1"
        assert trailers["x-ratelimit-remaining"] == "0"
        assert trailers["x-ratelimit-reset"] == "15"
        call = to.mesh.channel.unary_unary(INFER)(infer("m"))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(tuple(await call.trailing_metadata()))
        assert trailers["retry-after"] == "15"
        assert 14_000 < int(trailers["grpc-retry-pushback-ms"]) <= 15_000
        assert trailers["x-ratelimit-remaining"] == "0"
        details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
        assert [packed.Unpack(quota) or packed.Unpack(retry) for packed in details].count(True) == 2
        assert quota.violations[0].subject == "one"
        assert 14 <= retry.retry_delay.ToSeconds() <= 15
        error = await to.refused()
        assert isinstance(error, errors.RateLimitedError)
        assert (error.rule, error.reason) == ("one", "RATE_LIMITED")
        assert 'over the limit "one", 4 calls/min for all together' in error.message
        assert to.counted("one") == {"near": 1, "over": 2}


async def test_a_used_up_quota_is_another_reason_and_not_to_be_tried_again() -> None:
    async with limited("limits: [{name: q, quota: 2/day, per: [tenant]}]") as to:
        assert await to.granted(4) == 2
        error = await to.refused()
        assert isinstance(error, errors.RateLimitedError)
        assert (error.reason, error.retry_after_s) == ("QUOTA_EXCEEDED", None)
        assert error.subject == "q|anonymous"
        assert "begins anew in" in error.message


async def test_tenants_have_buckets_of_their_own() -> None:
    rule = "limits: [{name: t, per: [tenant], rate: 1/h, burst: 2}]"
    async with limited(keys("acme", "beta") + rule) as to:
        assert await to.granted(5, metadata=of("acme")) == 2
        assert await to.granted(5, metadata=of("beta")) == 2


async def test_no_other_rule_is_charged_where_one_refuses() -> None:
    rules = f"limits: [{ONE}, {{name: all, rate: 1/h, burst: 10}}]"
    async with limited(rules) as to:
        assert await to.granted(4) == 1
        assert await to.left("all") == pytest.approx(9, abs=0.1)


async def test_rules_that_do_not_match_are_not_asked() -> None:
    async with limited(f"limits: [{ONE}]") as to:
        assert await to.granted(3, model="n") == 3
        assert "x-ratelimit-limit" not in await to.infer("n")
        await to.mesh.channel.unary_unary(ECHO)(b"x")
        assert to.counted("one") == {}


@pytest.mark.parametrize("kind", ["rate: 1/h", "rate: 1/h, strict: true", "quota: 1/day"])
async def test_a_rule_in_shadow_only_counts(kind: str) -> None:
    async with limited(f"limits: [{{name: s, {kind}, mode: shadow}}]") as to:
        assert await to.granted(3) == 3
        assert to.counted("s") == {"near": 1, "shadow": 2}
        assert "x-ratelimit-limit" not in await to.infer()
        scraped = await to.mesh.metrics()
        assert 'aiflow_ratelimit_total{result="shadow",rule="s"} 3.0' in scraped


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(INFER, id="an inference"),
        pytest.param(STREAM, id="a stream of inferences"),
        pytest.param(ECHO, id="a call of a service"),
    ],
)
async def test_every_kind_of_call_is_limited(method: str) -> None:
    async with limited("limits: [{name: a, rate: 1/h, burst: 2}]", ModelStreamInfer=echo) as to:
        codes = []
        for _number in range(3):
            call = to.mesh.channel.stream_stream(method)()
            # One that is refused may end before this is sent.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(infer("m"))
                await call.done_writing()
                async for _ in call:
                    pass
            codes.append(await call.code())
        assert codes == [
            grpc.StatusCode.OK,
            grpc.StatusCode.OK,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ]


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        pytest.param("match: {model: n}, ", "INVALID_ARGUMENT", id="it has limits of its own"),
        pytest.param("per: [model], ", "INVALID_ARGUMENT", id="each model has a bucket"),
        pytest.param("", "OK", id="both have the same limits"),
    ],
)
async def test_no_model_is_reached_past_its_limits_by_the_stream_of_another(
    rule: str, code: str
) -> None:
    config = f"limits: [{{name: a, {rule}rate: 1/h}}]"
    async with limited(config, ModelStreamInfer=echo) as to:
        call = to.mesh.channel.stream_stream(STREAM)()
        await call.write(infer("m"))
        assert await call.read() == infer("m")
        await call.write(infer("n"))
        await call.done_writing()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
        assert (await call.code()).name == code


async def test_reads_and_administration_are_not_limited() -> None:
    async with limited("limits: [{name: a, rate: 1/h}]", ModelMetadata=echo) as to:
        await to.infer()
        metadata = to.mesh.channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        assert await metadata(infer("m"))
        assert await to.mesh.endpoints()


async def test_a_course_is_one_call_of_the_model_that_was_asked_for() -> None:
    other = "{name: n, match: {model: n}, rate: 1/h}"
    config = f"routes: [{{match: {{model: m}}, fallback: [n]}}]\nlimits: [{ONE}, {other}]"
    async with limited(config) as to:
        assert await to.granted(3) == 1
        assert await to.left("n") == 1


async def test_an_answer_from_the_cache_is_a_call_too() -> None:
    calls = "{name: a, rate: 1/h, burst: 2}"
    tokens = "{name: t, rate: 1/h, burst: 100, cost: tokens, assume: 7}"
    route = "routes: [{match: {model: m}, cache: {ttl: 60s}}]\n"
    config = f"{route}limits: [{calls}, {tokens}]"
    async with limited(config, ModelInfer=answers("tokens=9")) as to:
        first, again = await to.infer(), await to.infer()
        assert (first["x-aiflow-cache"], again["x-aiflow-cache"]) == ("miss", "hit")
        assert (first["x-aiflow-used"], "x-aiflow-used" in again) == ("tokens=9", False)
        # Its tokens were used once.
        assert await to.left("t") == pytest.approx(91, abs=0.1)
        assert (await to.refused()).reason == "RATE_LIMITED"


TOKENS = "limits: [{name: t, cost: tokens, rate: 1/h, burst: 100%s}]"


@pytest.mark.parametrize(
    ("assume", "declared", "used", "left"),
    [
        pytest.param("", "tokens=30", "tokens=20", 80, id="less than it said: the rest is back"),
        pytest.param("", "tokens=30", "tokens=50", 50, id="more than it said"),
        pytest.param("", "tokens=30", "gpu-ms=5", 70, id="the server does not say"),
        pytest.param(", assume: 40", "", "pixels=5", 60, id="nobody says"),
        pytest.param(", assume: 40", "tokens=10", "tokens=10", 90, id="what is said counts"),
        pytest.param("", "tokens=30", "tokens=-5", 70, id="the server makes no sense"),
    ],
)
async def test_a_call_costs_what_it_took(
    assume: str, declared: str, used: str, left: float
) -> None:
    async with limited(TOKENS % assume, ModelInfer=answers(used)) as to:
        told = (("x-aiflow-units", declared),) if declared else ()
        trailers = await to.infer(metadata=told)
        assert trailers["x-aiflow-used"] == used
        assert await to.left("t") == pytest.approx(left, abs=0.1)


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        pytest.param("", "does not say how many", id="nothing is said"),
        pytest.param("pixels=5", "does not say how many", id="something else is said"),
        pytest.param("tokens=-5", "cannot be read", id="a negative cost"),
        pytest.param("tokens=many", "cannot be read", id="no number"),
    ],
)
async def test_who_must_say_what_a_call_costs_is_told_so(declared: str, why: str) -> None:
    async with limited(TOKENS % "") as to:
        error = await to.refused(metadata=(("x-aiflow-units", declared),) if declared else ())
        assert isinstance(error, errors.BadInputError)
        assert why in error.message
        assert "x-aiflow-units" in error.violations
        assert await to.left("t") == 100


async def test_a_call_that_asks_for_more_than_there_ever_is() -> None:
    async with limited(TOKENS % "") as to:
        error = await to.refused(metadata=(("x-aiflow-units", "tokens=101"),))
        assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", -1)
        assert "never has more than 100" in error.message


async def test_bytes_are_those_of_request_and_answer() -> None:
    async with limited("limits: [{name: b, cost: bytes, rate: 1/h, burst: 1000}]") as to:
        request = infer("m", b"\x3a\x61" + b"x" * 97)
        await to.mesh.channel.unary_unary(INFER)(request)
        assert await to.left("b") == pytest.approx(1000 - 2 * len(request), abs=0.1)
        before = await to.left("b")
        call = to.mesh.channel.stream_stream(ECHO)()
        for _ in range(3):
            await call.write(b"x" * 50)
            await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert await to.left("b") == pytest.approx(before - 300, abs=0.1)


@pytest.mark.parametrize(
    ("model", "left"),
    [
        pytest.param("m", 9, id="a backend that fails has worked on it"),
        pytest.param("gone", 10, id="where no endpoint can be reached nothing was used"),
        pytest.param("unknown", 10, id="a model that nobody knows is not even asked about"),
    ],
)
async def test_what_failed_costs_what_was_used(model: str, left: float) -> None:
    async with limited("limits: [{name: a, rate: 1/h, burst: 10}]", ModelInfer=fail) as to:
        await to.mesh.register("127.0.0.1:1", models=("gone",), backend="gone", services=())
        await to.refused(model)
        assert await to.left("a") == pytest.approx(left, abs=0.1)


async def held(to: Limited) -> float:
    return 1 - await to.left("c")


PLACE = "limits: [{name: c, concurrency: 1}]"


async def test_a_place_is_free_once_its_call_has_ended() -> None:
    async with limited(PLACE, ModelInfer=fail) as to:
        for _ in range(2):
            assert (await to.refused()).code == "INVALID_ARGUMENT"
            assert await held(to) == 0
    async with limited(PLACE) as to:
        assert await to.granted(3) == 3


async def test_a_place_is_held_while_its_call_lasts() -> None:
    async with limited(PLACE, ModelInfer=hang) as to:
        call = to.mesh.channel.unary_unary(INFER)(infer("m"))
        await until(lambda: to.mesh.inflight() == 1)
        error = await to.refused("n")
        assert (error.reason, error.metadata["rule"]) == ("RATE_LIMITED", "c")
        assert error.retry_after_s is not None
        call.cancel()
        await until(lambda: to.mesh.inflight() == 0)
        assert await held(to) == 0


async def test_a_place_is_free_when_the_deadline_of_its_call_has_passed() -> None:
    async with limited(PLACE, ModelInfer=hang) as to:
        call = to.mesh.channel.unary_unary(INFER)(infer("m"), timeout=0.1)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: to.mesh.inflight() == 0)
        assert await held(to) == 0


async def test_a_stream_holds_its_place_until_it_ends() -> None:
    async with limited(PLACE) as to:
        call = to.mesh.channel.stream_stream(ECHO)()
        await call.write(b"x")
        await call.read()
        assert await held(to) == 1
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert await held(to) == 0


async def test_sessions_have_buckets_of_their_own() -> None:
    async with limited("limits: [{name: s, per: [session], rate: 1/h}]") as to:
        for session in ("one", "two"):
            assert await to.granted(3, metadata=(("x-aiflow-session", session),)) == 1
        assert await to.granted(3) == 1


async def put(to: Limited, document: str) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(to.mesh.channel)
    await stub.Set(policy_pb2.SetPolicyRequest(document=document))


async def test_limits_change_while_the_router_runs_and_keep_what_was_used() -> None:
    rule = "limits: [{name: a, rate: 1/h, burst: %d}]"
    async with limited("") as to:
        assert "x-ratelimit-limit" not in await to.infer()
        await put(to, rule % 4)
        assert await to.granted(3) == 3
        await put(to, rule % 4 + "\nroutes: [{match: {model: n}, timeout: 3s}]")
        assert await to.granted(3) == 1
        await put(to, rule % 9)
        assert await to.granted(3) == 0
        await put(to, "limits: []")
        assert await to.granted(3) == 3


async def test_a_call_in_flight_is_settled_by_the_limits_it_was_let_in_by() -> None:
    async with limited(PLACE, ModelInfer=hang) as to:
        call = to.mesh.channel.unary_unary(INFER)(infer("m"))
        await until(lambda: to.mesh.inflight() == 1)
        await put(to, "limits: [{name: c, rate: 1/h, burst: 5}]")
        call.cancel()
        await until(lambda: to.mesh.inflight() == 0)
        await put(to, PLACE)
        assert await held(to) == 0


async def test_limits_that_make_no_sense_are_refused_by_the_service_too() -> None:
    async with limited(f"limits: [{ONE}]") as to:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await put(to, "limits:\n  - {name: a, rate: 0/s}")
        error = status.from_rpc_error(caught.value)
        assert isinstance(error, errors.BadInputError)
        assert "policy:2:15: limits.0.rate: must be more than 0" in error.message
        assert await to.granted(2) == 1
