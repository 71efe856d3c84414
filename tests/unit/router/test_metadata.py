"""What of a call's metadata goes on, and what stays."""

import pytest

from aiflow_router.forwarding.metadata import Pair, back, read_head


@pytest.mark.parametrize(
    ("sent", "goes_on"),
    [
        pytest.param(("authorization", "Bearer k"), False, id="a bearer key stays"),
        pytest.param(("authorization", "Basic k"), False, id="any other authorization stays"),
        pytest.param(("x-api-key", "k"), False, id="an API key stays"),
        pytest.param(("user-agent", "x"), False, id="the user agent belongs to one hop"),
        pytest.param(("te", "trailers"), False, id="te belongs to one hop"),
        pytest.param(("grpc-accept-encoding", "gzip"), False, id="encodings belong to one hop"),
        pytest.param(("x-aiflow-served-by", "me"), False, id="the router's names cannot be set"),
        pytest.param(("x-aiflow-tenant", "me"), False, id="unknown x-aiflow names cannot be set"),
        pytest.param(("x-aiflow-priority", "high"), True, id="priority may be set"),
        pytest.param(("x-aiflow-session", "7"), True, id="session may be set"),
        pytest.param(("traceparent", "00-x"), True, id="trace context goes on"),
        pytest.param(("grpc-trace-bin", b"\x01"), True, id="binary trace context goes on"),
        pytest.param(("tag-bin", b"\x00\xff"), True, id="binary metadata goes on"),
        pytest.param(("x-tag", "1"), True, id="other x- names go on"),
    ],
)
def test_metadata_on_the_way_in(sent: Pair, goes_on: bool) -> None:
    assert (sent in read_head([sent]).onward) == goes_on


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ([("authorization", "Bearer k")], "k"),
        ([("authorization", "bearer  k ")], "k"),
        ([("x-api-key", "k")], "k"),
        ([], ""),
        ([("authorization", "Basic abc")], "Basic abc"),
    ],
)
def test_the_key_is_read(metadata: list[Pair], key: str) -> None:
    assert read_head(metadata).key == key


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, 'a"b', "a\nb"])
def test_a_request_id_that_is_not_sane_is_replaced(bad: str) -> None:
    head = read_head([("x-request-id", bad)])
    assert head.request_id
    assert head.request_id != bad
    assert dict(head.onward)["x-request-id"] == head.request_id


def test_a_sane_request_id_and_the_trace_id_are_kept() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    head = read_head(
        [("x-request-id", "job-7"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01")]
    )
    assert (head.request_id, head.trace_id) == ("job-7", trace)


def test_metadata_on_the_way_back() -> None:
    kept: list[Pair] = [("a", "1"), ("b-bin", b"\xff"), ("grpc-status-details-bin", b"\x01")]
    dropped: list[Pair] = [("x-aiflow-served-by", "x"), ("x-request-id", "y"), ("grpc-x", "z")]
    assert back([*kept, *dropped]) == kept
