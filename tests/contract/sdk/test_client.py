"""Both clients do the same against a real server: calls, errors, repetitions, deadlines."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from contract.sdk.kit import (
    ONE,
    SERVICE,
    Connect,
    Text,
    Words,
    WordsStub,
    add_words,
    connect_async,
    connect_sync,
    double,
)

from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import errors
from aiflow_sdk._settings import Retry
from aiflow_sdk.testing import Failure, serving


@pytest.fixture(params=[connect_sync, connect_async], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Connect:
    chosen: Connect = request.param
    return chosen


def test_an_inference_says_what_came_back_and_who_served_it(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        result = client.infer("double", ONE, request_id="r-1", session="s", priority="high")
    assert result["y"].tolist() == [[2, 2]]
    assert (result.model, result.served_by) == ("double", f"double@{server.address}")
    assert (result.attempts, result.router_attempts, result.request_id) == (1, 1, "r-1")
    assert result.elapsed_ms > 0
    sent = server.calls[0].metadata
    assert (sent["x-request-id"], sent["x-aiflow-session"]) == ("r-1", "s")
    assert sent["x-aiflow-priority"] == "high"
    with pytest.raises(KeyError, match="it gave: y"):
        result["z"]


def test_pictures_go_as_bytes_with_a_batch_of_one_or_of_many(connect: Connect) -> None:
    seen: list[Any] = []

    def model(inputs: Any) -> Any:
        seen.append(inputs["image"])
        return {"sizes": np.array([[len(i)] for i in inputs["image"].flat], np.int32)}

    with serving({"m": model}) as server, connect(server.address) as client:
        assert client.infer("m", {"image": b"\xff\xd8\x00"})["sizes"].tolist() == [[3]]
        assert client.infer("m", {"image": [b"a", b"bc"]})["sizes"].tolist() == [[1], [2]]
    assert [tuple(array.shape) for array in seen] == [(1, 1), (2, 1)]


def test_answers_stream_in_order_and_a_wrong_one_ends_the_stream(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        results = list(client.stream_infer("double", [ONE, ONE, ONE]))
        assert [r["y"].tolist() for r in results] == [[[2, 2]]] * 3
        with pytest.raises(errors.BackendError, match="x"):
            list(client.stream_infer("double", [ONE, {"q": b"wrong"}]))
        with pytest.raises(errors.BadInputError, match="input 'x'"):
            list(client.stream_infer("double", [{"x": np.array([object()])}]))


def test_models_health_and_readiness_are_told(connect: Connect) -> None:
    services = [(add_words, Words())]
    with serving({"a": double}, servicers=services) as server, connect(server.address) as client:
        assert client.models() == ("a",)
        assert {s for e in client.endpoints() for s in e.services} == {SERVICE}
        assert client.health() == "SERVING"
        assert client.ready("a")
        assert not client.ready("nobody")
        with pytest.raises(errors.NotFoundError):
            client.health("nobody")
        client.wait_ready(models=["a"], services=[SERVICE], timeout_s=5)
        with pytest.raises(errors.DeadlineExceededError, match="nobody") as caught:
            client.wait_ready(models=["a", "nobody"], timeout_s=0.3)
    assert caught.value.reason == "NOT_READY"


def test_a_stub_makes_all_four_kinds_of_calls(connect: Connect) -> None:
    words = [Text(value="ab"), Text(value="c")]
    services = [(add_words, Words())]
    with serving(servicers=services) as server, connect(server.address, api_key="k") as client:
        stub = client.stub(WordsStub)
        assert stub.Echo(Text(value="hi"), timeout=5).value == "hi"
        assert [m.value for m in stub.Spell(Text(value="hi"))] == ["h", "i"]
        assert stub.Count(iter(words)).value == 3
        assert [m.value for m in stub.Chat(iter(words))] == ["ab", "c"]
    assert {call.metadata["authorization"] for call in server.calls} == {"Bearer k"}
    assert len({call.metadata["x-request-id"] for call in server.calls}) == 4
    left_s = [call.time_remaining_s for call in server.calls]
    assert all(s is not None and 0 < s < 61 for s in left_s)  # rounded up on the wire
    assert left_s[0] is not None
    assert left_s[0] < 6


def test_errors_are_typed_in_all_four_kinds_of_calls(connect: Connect) -> None:
    def refuse(_: Any, __: Any) -> Any:
        raise errors.RefusedError("not today", reason="CONTENT_REJECTED")

    words = [Text(value="ab")]
    services = [(add_words, Words(refuse))]
    with serving(servicers=services) as server, connect(server.address) as client:
        stub = client.stub(WordsStub)
        for call in (stub.Echo, stub.Spell):
            with pytest.raises(errors.RefusedError, match="not today") as caught:
                list(call(words[0]))
            assert caught.value.reason == "CONTENT_REJECTED"
            assert caught.value.request_id
        with pytest.raises(errors.RefusedError):
            list(stub.Chat(iter(words)))
        server.fail_next(Failure(error=errors.BadInputError("no", violations={"value": "no"})))
        with pytest.raises(errors.BadInputError) as bad:
            stub.Count(iter(words))
    assert bad.value.violations == {"value": "no"}


def test_a_typed_call_by_name_tells_who_served_it(connect: Connect) -> None:
    name = "aiflow.imaging.v1.ImagingService/RenderOverlay"
    with serving(servicers=[_imaging()]) as server, connect(server.address) as client:
        reply = client.call(name, imaging_pb2.RenderOverlayRequest(svg="<svg/>"))
        assert reply.message.image.data == b"<svg/>"
        assert reply.served_by == f"aiflow.imaging.v1.ImagingService@{server.address}"
        with pytest.raises(errors.BadInputError, match=r"takes aiflow\.imaging"):
            client.call(name, imaging_pb2.ComposeContactSheetRequest())
        with pytest.raises(errors.BadInputError, match="hold no"):
            client.call("aiflow.imaging.v1.ImagingService/No", imaging_pb2.RenderOverlayRequest())


ALL_CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.AiflowError)
    if cls is not errors.AiflowError
]


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_every_class_of_error_arrives_typed(
    connect: Connect, cls: type[errors.AiflowError]
) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        server.fail_next(Failure(error=cls("what to do", retry_after_s=-1)))
        with pytest.raises(cls, match="what to do") as caught:
            client.infer("double", ONE, request_id="r-2")
    assert caught.value.request_id == "r-2"
    assert caught.value.retry_after_s == -1
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("what", "error", "idempotent", "calls"),
    [
        ("nothing serves it, so nothing was done", errors.NoEndpointError("x"), False, 2),
        ("overload turned it away", errors.OverloadedError("x"), False, 2),
        ("the server drains", errors.DrainingError("x"), False, 2),
        ("unavailable, perhaps half done", errors.UnavailableError("x"), False, 1),
        ("unavailable, but harmless to repeat", errors.UnavailableError("x"), True, 2),
        ("push-back forbids it", errors.NoEndpointError("x", retry_after_s=-1), True, 1),
        ("over the limit is not unavailable", errors.RateLimitedError("x"), True, 1),
        ("a late answer is not unavailable", errors.DeadlineExceededError("x"), True, 1),
        ("a broken stream is not repeated", errors.StreamBrokenError("x"), True, 1),
    ],
)
def test_a_typed_call_is_repeated_only_where_that_is_safe(
    connect: Connect, what: str, error: errors.AiflowError, idempotent: bool, calls: int
) -> None:
    services = [(add_words, Words())]
    with serving(servicers=services) as server, connect(server.address) as client:
        server.fail_next(Failure(error=error))
        stub = client.stub(WordsStub, idempotent=idempotent)
        if calls == 1:
            with pytest.raises(type(error)):
                stub.Echo(Text(value="hi"))
        else:
            assert stub.Echo(Text(value="hi")).value == "hi"
    assert len(server.calls) == calls
    assert len({call.metadata["x-request-id"] for call in server.calls}) == 1


def test_a_connection_that_breaks_repeats_inference_but_no_unsafe_call(connect: Connect) -> None:
    services = [(add_words, Words())]
    with (
        serving({"double": double}, servicers=services) as server,
        connect(server.address) as client,
    ):
        server.fail_next(Failure(drop=True))
        assert client.infer("double", ONE).attempts >= 2
        server.fail_next(Failure(drop=True))
        with pytest.raises(errors.UnavailableError):
            client.stub(WordsStub).Echo(Text(value="hi"))
    assert [call.method for call in server.calls].count(f"/{SERVICE}/Echo") == 1


def test_the_wait_is_the_one_the_server_asks_for(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        server.fail_next(Failure(error=errors.OverloadedError("busy", retry_after_s=0.4)))
        started_s = time.monotonic()
        assert client.infer("double", ONE).attempts == 2
        assert time.monotonic() - started_s >= 0.4


def test_a_wait_past_the_deadline_is_not_begun(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        server.fail_next(Failure(error=errors.OverloadedError("busy", retry_after_s=30)))
        started_s = time.monotonic()
        with pytest.raises(errors.OverloadedError):
            client.infer("double", ONE, timeout_s=2)
        assert time.monotonic() - started_s < 2
    assert len(server.calls) == 1


def test_attempts_are_counted_and_bounded(connect: Connect) -> None:
    with (
        serving({"double": double}) as server,
        connect(server.address, retry=Retry(attempts=2)) as client,
    ):
        server.fail_next(Failure(error=errors.NoEndpointError("none")), times=2)
        with pytest.raises(errors.NoEndpointError):
            client.infer("double", ONE)
    assert len(server.calls) == 2


def test_the_deadline_covers_all_attempts_and_reaches_the_server(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        server.fail_next(Failure(delay_s=0.3, error=errors.NoEndpointError("none")))
        server.fail_next(Failure(delay_s=30))
        started_s = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError, match="timeout_s") as caught:
            client.infer("double", ONE, timeout_s=1)
        assert 0.9 < time.monotonic() - started_s < 3
        assert caught.value.request_id
        first, second = server.calls
        assert first.time_remaining_s is not None
        assert second.time_remaining_s is not None
        assert second.time_remaining_s < first.time_remaining_s - 0.25
        assert second.ended.wait(5)


def test_a_router_that_is_not_there_is_told_so(connect: Connect) -> None:
    with connect("127.0.0.1:1", timeout_s=5) as client:
        with pytest.raises(errors.UnavailableError, match="aiflow up") as caught:
            client.infer("double", ONE)
        assert caught.value.reason == "ROUTER_UNREACHABLE"
        assert not client.ready()


def test_a_missing_key_is_an_authentication_error_that_shows_no_key(connect: Connect) -> None:
    with serving({"double": double}, api_key="right") as server:
        with connect(server.address, api_key="right") as client:
            client.infer("double", ONE)
        with connect(server.address, api_key="wrong-key") as client:
            with pytest.raises(errors.AuthenticationError) as caught:
                client.infer("double", ONE)
            assert "wrong-key" not in repr(caught.value) + repr(vars(client))


def test_a_message_over_the_limit_is_told_as_too_large(connect: Connect) -> None:
    with (
        serving({"double": double}, max_message_bytes=1024) as server,
        connect(server.address) as client,
    ):
        with pytest.raises(errors.MessageTooLargeError):
            client.infer("double", {"x": np.zeros((1, 4096), np.float32)})
        with pytest.raises(errors.MessageTooLargeError):
            client.infer("double", {"x": np.zeros((17, 1024, 1024), np.float32)})
        assert client.infer("double", ONE)["y"].tolist() == [[2, 2]]


def test_wrong_arguments_are_refused_before_anything_is_sent(connect: Connect) -> None:
    with serving({"double": double}) as server, connect(server.address) as client:
        for wrong in (
            {"timeout_s": 0},
            {"timeout_s": float("nan")},
            {"parameters": {"p": [1]}},
            {"outputs": "y"},
            {"session": "zwölf"},
        ):
            with pytest.raises(errors.BadInputError):
                client.infer("double", ONE, **wrong)
        for value in ([1.0, 2.0], np.array(["2026"], "datetime64[D]"), []):
            with pytest.raises(errors.BadInputError, match="input 'x'"):
                client.infer("double", {"x": value})
    assert server.calls == []


def _imaging() -> Any:
    class Imaging(imaging_pb2_grpc.ImagingServiceServicer):
        def RenderOverlay(self, request: Any, _: Any) -> Any:  # noqa: N802 - as in the proto
            image = imaging_pb2.Image(data=request.svg.encode(), media_type="image/png")
            return imaging_pb2.RenderOverlayResponse(image=image)

    return imaging_pb2_grpc.add_ImagingServiceServicer_to_server, Imaging()  # type: ignore[abstract]
