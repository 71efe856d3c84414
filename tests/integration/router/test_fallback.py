"""Fallback over real sockets: what sends a call on, to whom, and what is told."""

import asyncio
import json
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc.aio as aio_client
from integration.router.fallback_kit import READY, VERSION, ask, fails, refusal, routed, unavailable
from integration.router.kit import Seen, backend, backend_process, echo, infer, mesh, until
from integration.router.test_oip import Triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow_sdk import errors

STEP = b"\x22\x0d\x0a\x0bsequence_id"  # A parameter, as clients write it.
CONDITIONS = {
    "no_endpoint": fails(errors.NoEndpointError("nobody", retry_after_s=1.0)),
    "unavailable": unavailable,
    "overload": fails(errors.OverloadedError("busy", retry_after_s=9.0)),
    "pool_exhausted": fails(errors.UnavailableError("dry", reason="POOL_EXHAUSTED")),
}


@pytest.mark.parametrize("condition", CONDITIONS)
async def test_a_backend_that_meets_a_condition_sends_the_call_on(condition: str) -> None:
    handles = {"a": CONDITIONS[condition], "b": echo}
    async with routed("fallback: [b]", handles) as (m, servers):
        answer, told = await ask(m, infer("a", VERSION + b"\x1a\x01x"))
        # The version was one of the other model.
        assert answer == infer("b", b"\x1a\x01x")
        assert told["x-aiflow-served-by"] == f"b@{servers['b'].address}"
        assert told["x-aiflow-fallback"] == condition
        assert told["x-aiflow-attempts"] == "2"
        text = await m.metrics()
        labels = f'from="a",reason="{condition}",to="b"'
        assert f"aiflow_fallback_total{{{labels}}} 1.0" in text
        assert 'aiflow_requests_total{code="OK",model="a",tenant="anonymous"} 1.0' in text
    line = json.loads(m.log[0])
    assert (line["model"], line["endpoint"]) == ("a", told["x-aiflow-served-by"])
    assert (line["fallback"], line["attempts"]) == (condition, 2)


async def test_deadline_unreachable_is_overload_though_it_forbids_a_repetition() -> None:
    late = errors.DeadlineUnreachableError("queue", retry_after_s=-1.0)
    async with routed("fallback: [b]", {"a": fails(late), "b": echo}) as (m, _):
        assert (await ask(m))[1]["x-aiflow-fallback"] == "overload"


async def test_a_model_without_endpoints_and_one_that_nobody_ever_served_are_passed_over() -> None:
    async with routed("fallback: [never, c]", {"c": echo}) as (m, _):
        answer, told = await ask(m)
        assert answer == infer("c")
        assert told["x-aiflow-fallback"] == "no_endpoint,no_endpoint"


async def test_an_endpoint_that_cannot_be_reached_sends_the_call_on() -> None:
    async with routed("fallback: [b]", {"b": echo}) as (m, _):
        await m.register("127.0.0.1:1", models=("a",), backend="a")
        answer, told = await ask(m, infer("a", STEP))  # Nothing was sent: any call may go on.
        assert answer == infer("b", STEP)
        assert told["x-aiflow-fallback"] == "no_endpoint"


async def test_a_full_gate_sends_the_call_on_and_the_next_gate_counts_too() -> None:
    go = asyncio.Event()

    async def held(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await go.wait()
        await context.write(b"answer")

    one = "overload: {limit: 1, queue: 0}"
    lite = f", {{match: {{model: b}}, {one}}}"
    async with routed(f"{one}, fallback: [b]", {"a": held, "b": held}, more=lite) as (m, servers):
        first = asyncio.create_task(ask(m))
        await until(lambda: len(servers["a"].seen) == 1)
        second = asyncio.create_task(ask(m, infer("a", STEP)))
        await until(lambda: len(servers["b"].seen) == 1)
        error = await refusal(m)
        assert isinstance(error, errors.OverloadedError)
        assert '"a" has as many calls' in error.message
        assert error.metadata["fallback"] == "b: UNAVAILABLE/OVERLOADED"
        go.set()
        assert (await first)[1]["x-aiflow-served-by"].startswith("a@")
        assert (await second)[1]["x-aiflow-fallback"] == "overload"
        assert all(gates.idle() for _, gates in m.router.front.table.gates())


NEVER = {
    "bad input": errors.BadInputError("x"),
    "rejected content": errors.RefusedError("x", reason="CONTENT_REJECTED"),
    "an unknown name": errors.ModelNotFoundError("x"),
    "a limit of the caller's": errors.RateLimitedError("x", retry_after_s=1.0),
    "cancelled by the backend": errors.CallCancelledError("x"),
    "a bug": errors.BackendError("x", code="INTERNAL"),
    "a deadline of the backend's own": errors.DeadlineExceededError("x"),
}


@pytest.mark.parametrize("error", NEVER.values(), ids=NEVER.keys())
async def test_what_is_the_callers_to_know_goes_back_unchanged(error: errors.AiflowError) -> None:
    everything = "fallback: {to: [b], deadline_share: 90%}"
    async with routed(everything, {"a": fails(error), "b": echo}) as (m, servers):
        found = await refusal(m)
        assert (found.code, found.reason, found.message) == (error.code, error.reason, "x")
        assert not servers["b"].seen


async def test_only_listed_conditions_send_a_call_on() -> None:
    listed = "fallback: {to: [b], on: [overload]}"
    async with routed(listed, {"a": unavailable, "b": echo}) as (m, servers):
        assert (await refusal(m)).message == "not now"
        assert not servers["b"].seen


async def test_a_chain_of_three_says_why_each_time() -> None:
    handles = {"a": unavailable, "b": CONDITIONS["overload"], "c": echo}
    async with routed("fallback: [b, c]", handles) as (m, servers):
        answer, told = await ask(m)
        assert answer == infer("c")
        assert told["x-aiflow-fallback"] == "unavailable,overload"
        assert told["x-aiflow-attempts"] == "3"
        assert servers["b"].seen[0].messages == [infer("b")]


async def test_when_all_refuse_the_caller_gets_the_asked_models_word_and_the_others_beside() -> (
    None
):
    handles = {"a": unavailable, "b": CONDITIONS["overload"]}
    async with routed("fallback: [b, never]", handles) as (m, _):
        error = await refusal(m)
        assert (error.code, error.message) == ("UNAVAILABLE", "not now")
        said = "b: UNAVAILABLE/OVERLOADED; never: UNAVAILABLE/NO_ENDPOINT"
        assert error.metadata["fallback"] == said


async def test_a_candidates_own_fallback_is_not_followed() -> None:
    more = ", {match: {model: b}, fallback: [c]}"
    handles = {"a": unavailable, "b": unavailable, "c": echo}
    async with routed("fallback: [b]", handles, more=more) as (m, servers):
        await refusal(m)
        assert not servers["c"].seen
        assert (await ask(m, infer("b")))[0] == infer("c")


async def test_a_step_of_a_sequence_does_not_go_on_once_it_was_sent() -> None:
    async with routed("fallback: [b]", {"a": unavailable, "b": echo}) as (m, servers):
        assert (await refusal(m, infer("a", STEP))).message == "not now"
        assert not servers["b"].seen


async def test_the_whole_chain_has_one_number_of_tries() -> None:
    async with (
        routed("retry: {attempts: 2}, fallback: [b, c]", {"a": unavailable, "b": unavailable}) as (
            m,
            servers,
        ),
        backend(ModelInfer=unavailable) as second_a,
        backend(ModelInfer=unavailable) as second_b,
        backend(ModelInfer=unavailable) as c,
    ):
        await m.register(second_a.address, models=("a",), backend="a")
        await m.register(second_b.address, models=("b",), backend="b")
        await m.register(c.address, models=("c",), backend="c")
        await refusal(m)
        tried = {
            "a": len(servers["a"].seen) + len(second_a.seen),
            "b": len(servers["b"].seen) + len(second_b.seen),
            "c": len(c.seen),
        }
        assert tried == {"a": 2, "b": 1, "c": 1}  # One try beyond the first one of each.


async def test_questions_about_a_model_go_where_its_calls_would() -> None:
    async with routed("fallback: [b]", {"b": echo}) as (m, _):
        call = m.channel.unary_unary(READY)(infer("a"))
        assert await call == infer("b")
        assert dict(tuple(await call.trailing_metadata()))["x-aiflow-fallback"] == "no_endpoint"


async def test_an_unchanged_tritonclient_is_answered_by_the_other_model() -> None:
    server = grpc.aio.server()
    add: Any = service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    add(Triton("lite"), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = "routes: [{match: {model: detector}, fallback: [lite]}]"
    async with mesh(config) as m:
        await m.register(f"127.0.0.1:{port}", models=("lite",))
        client = aio_client.InferenceServerClient(m.router.grpc_address)
        assert await client.is_model_ready("detector")
        assert (await client.get_model_metadata("detector")).name == "lite"
        x = np.arange(4, dtype=np.float32)
        tensor = aio_client.InferInput("x", [4], "FP32")
        tensor.set_data_from_numpy(x)
        result = await client.infer("detector", [tensor], model_version="3", request_id="7")
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
        answer = result.get_response()
        assert (answer.model_name, answer.id) == ("lite", "7")
        await client.close()
    await server.stop(None)


async def test_a_large_request_is_renamed_whole() -> None:
    tensor = bytes(range(256)) * 40_000
    request = service_pb2.ModelInferRequest(model_name="a", raw_input_contents=[tensor])
    async with routed("fallback: [b]", {"b": echo}) as (m, _):
        answer, _ = await ask(m, request.SerializeToString())
        request.model_name = "b"
        assert service_pb2.ModelInferRequest.FromString(answer) == request


async def test_no_call_fails_when_the_only_backend_is_killed_under_load() -> None:
    served: Counter[str] = Counter()
    async with (
        backend_process() as (address, process),
        routed("fallback: [b]", {"b": echo}) as (m, _),
    ):
        await m.register(address, models=("a",), backend="a")
        stop = asyncio.Event()

        async def caller() -> None:
            while not stop.is_set():
                answer, told = await ask(m)
                by = told["x-aiflow-served-by"].partition("@")[0]
                assert answer == infer(by)
                served[by] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(caller())
            await until(lambda: served["a"] >= 200)
            process.kill()
            await until(lambda: served["b"] >= 500, within_s=10)
            stop.set()
    assert set(served) == {"a", "b"}
