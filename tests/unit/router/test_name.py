"""The scanner reads the same model name as protobuf does, out of any bytes."""

import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from aiflow_router.routing.name import MAX_FIELDS, in_a_sequence, model_name, renamed
from aiflow_sdk import errors

pieces = st.lists(
    st.one_of(
        st.binary(max_size=12).map(lambda raw: b"\x0a" + bytes([len(raw)]) + raw),
        st.text(max_size=4).map(
            lambda text: service_pb2.ModelInferRequest(model_name=text).SerializeToString()
        ),
        st.text(max_size=4).map(
            lambda text: service_pb2.ModelInferRequest(id=text).SerializeToString()
        ),
        st.integers(0, 2**64 - 1).map(
            lambda number: service_pb2.InferParameter(uint64_param=number).SerializeToString()
        ),
        st.binary(max_size=6),
        st.just(b"\x8a\x00\x01a"),  # Field 1 with an overlong tag.
    ),
    max_size=6,
).map(b"".join)


@given(pieces)
def test_what_protobuf_parses_is_read_alike_and_nothing_else_escapes(raw: bytes) -> None:
    try:
        expected = service_pb2.ModelReadyRequest.FromString(raw).name
    except DecodeError:
        expected = None
    try:
        found = model_name(raw)
    except errors.BadInputError:
        return
    if expected is not None:
        assert found == expected


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_the_last_name_counts(names: list[str]) -> None:
    raw = b"".join(
        b"\x0a" + bytes([len(name.encode())]) + name.encode() + b"\x1a\x01x" for name in names
    )
    assert model_name(raw) == names[-1]


@given(
    st.text(min_size=1, max_size=300),
    st.lists(st.binary(max_size=300), max_size=3),
)
def test_real_requests_are_read(name: str, tensors: list[bytes]) -> None:
    request = service_pb2.ModelInferRequest(model_name=name, id="7", raw_input_contents=tensors)
    request.parameters["priority"].uint64_param = 2**63
    assert model_name(request.SerializeToString()) == name


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param(b"\x0a", "cut short", id="a length is missing"),
        pytest.param(b"\x0a\x05ab", "cut short", id="a string is shorter than it says"),
        pytest.param(b"\x09\x01", "cut short", id="a fixed64 is shorter than it is"),
        pytest.param(b"\x00\x01", "out of range", id="field number zero"),
        pytest.param(b"\x0b\x0c", "wire type", id="a group"),
        pytest.param(b"\x0f", "wire type", id="a wire type that does not exist"),
        pytest.param(b"\x0a\x02\xff\xfe", "UTF-8", id="a name that is not UTF-8"),
        pytest.param(b"\x10" + b"\xff" * 11, "too many bytes", id="a varint without end"),
        pytest.param(b"\x10\x01" * (MAX_FIELDS + 1), "top-level fields", id="a flood of fields"),
    ],
)
def test_malformed_bytes_are_bad_input(raw: bytes, why: str) -> None:
    with pytest.raises(errors.BadInputError, match=why) as caught:
        model_name(raw)
    assert "request" in caught.value.violations


@given(pieces, st.text(min_size=1, max_size=300))
def test_a_renamed_message_is_the_same_but_for_its_name_and_version(raw: bytes, name: str) -> None:
    try:
        model_name(raw)
        expected = service_pb2.ModelInferRequest.FromString(raw)
    except (errors.BadInputError, DecodeError):
        return
    expected.model_name, expected.model_version = name, ""
    found = service_pb2.ModelInferRequest.FromString(renamed(raw, name))
    # Sorted fields: where a field that nobody knows stood among the others means nothing.
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


@given(
    st.permutations([(1, b"old"), (1, b"detector"), (2, b"3"), (2, b"1"), (3, b"id"), (7, b"t")]),
    st.text(min_size=1, max_size=200),
)
def test_every_occurrence_of_a_name_is_replaced(fields: list[tuple[int, bytes]], name: str) -> None:
    raw = b"".join(bytes([number << 3 | 2, len(text)]) + text for number, text in fields)
    found = service_pb2.ModelInferRequest.FromString(renamed(raw, name))
    assert found == service_pb2.ModelInferRequest(
        model_name=name, id="id", raw_input_contents=[b"t"]
    )


def test_a_big_message_is_copied_once() -> None:
    tensor = bytes(32 * 1024 * 1024)
    request = service_pb2.ModelInferRequest(
        model_name="detector", model_version="3", raw_input_contents=[tensor]
    )
    raw = request.SerializeToString()
    tracemalloc.start()
    found = renamed(raw, "detector-lite")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(raw) + 100_000
    request.model_name, request.model_version = "detector-lite", ""
    assert service_pb2.ModelInferRequest.FromString(found) == request


def test_what_is_cut_short_is_not_renamed() -> None:
    with pytest.raises(errors.BadInputError, match="cut short"):
        renamed(b"\x10", "m")


def test_a_step_of_a_sequence_is_told_by_its_parameters() -> None:
    request = service_pb2.ModelInferRequest(model_name="m")
    assert not in_a_sequence(request.SerializeToString())
    request.parameters["sequence_id"].int64_param = 7
    assert in_a_sequence(request.SerializeToString())


def test_no_name_is_an_empty_name() -> None:
    assert model_name(b"") == ""
    assert model_name(b"\x12\x01x") == ""
