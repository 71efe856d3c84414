"""Fields of raw bytes: taken apart as protobuf takes them, and put together the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from aiflow_router.forwarding.fields import fields, self_contained, without
from aiflow_router.routing.name import model_name, renamed
from aiflow_router.rpc.shadow import outcome_of

NAMES = st.text(max_size=200)


def request(name: str, raw: list[bytes], text: str = "") -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=name, id=text, raw_input_contents=raw)
    message.inputs.add(name="in", datatype="BYTES", shape=[1])
    return message


def answer(name: str, version: str, of: str, output: bytes) -> bytes:
    message = service_pb2.ModelInferResponse(
        model_name=name, model_version=version, id=of, raw_output_contents=[output]
    )
    message.outputs.add(name="out", datatype="BYTES", shape=[1])
    return bytes(message.SerializeToString())


@given(NAMES, NAMES, st.lists(st.binary(max_size=300), max_size=3), NAMES)
def test_a_renamed_request_is_the_same_for_another_model(
    name: str, other: str, raw: list[bytes], text: str
) -> None:
    message = request(name, raw, text)
    after = renamed(message.SerializeToString(), other)
    assert model_name(after) == other
    message.model_name = other
    assert service_pb2.ModelInferRequest.FromString(after) == message


@given(NAMES, NAMES, NAMES, st.binary(max_size=300))
def test_what_an_answer_says_does_not_depend_on_who_gave_it(
    name: str, version: str, of: str, output: bytes
) -> None:
    said = without(answer(name, version, of, output), {1, 2, 3})
    assert said == without(answer("m", "1", "", output), {1, 2, 3})
    assert service_pb2.ModelInferResponse.FromString(said).raw_output_contents == [output]


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_apart_whole_or_refused(message: bytes) -> None:
    try:
        found = list(fields(message))
    except ValueError:
        return
    ends = [0, *(end for _, _, end in found)]
    assert [start for _, start, _ in found] == ends[:-1]
    assert ends[-1] == len(message)


def with_parameter(name: str) -> bytes:
    message = request("m", [b"tensor"])
    message.parameters[name].int64_param = 1
    return bytes(message.SerializeToString())


def with_output_parameter(name: str) -> bytes:
    message = request("m", [])
    message.outputs.add(name="out").parameters[name].string_param = "region"
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(request("m", [b"t"]).SerializeToString(), True, id="tensors in the request"),
        pytest.param(with_parameter("timeout"), True, id="another parameter"),
        pytest.param(with_parameter("sequence_id"), False, id="a step of a sequence"),
        pytest.param(with_parameter("shared_memory_region"), False, id="tensors elsewhere"),
        pytest.param(
            with_output_parameter("shared_memory_region"), False, id="an answer elsewhere"
        ),
        pytest.param(
            request("m", [b"sequence_id shared_memory_"]).SerializeToString(),
            True,
            id="mere data in the tensors",
        ),
    ],
)
def test_what_a_request_says_by_itself(message: bytes, expected: bool) -> None:
    assert self_contained(message) is expected


ONE = answer("m", "1", "a", b"yes")
OTHER = answer("n", "2", "b", b"yes")


@pytest.mark.parametrize(
    ("real", "copy", "failed", "expected"),
    [
        pytest.param(ONE, OTHER, False, "same", id="the same said by another model"),
        pytest.param(ONE, answer("n", "2", "b", b"no"), False, "different", id="another answer"),
        pytest.param(b"\xff", b"\xff", False, "same", id="the same bytes of no such message"),
        pytest.param(b"\xff", b"\xfe", False, "different", id="other bytes of no such message"),
        pytest.param(ONE, None, False, "error", id="only the copy failed"),
        pytest.param(None, ONE, True, "better", id="only the call failed"),
        pytest.param(None, None, True, "both_failed", id="both failed"),
        pytest.param(None, ONE, False, "unpaired", id="its caller went away"),
    ],
)
def test_what_two_answers_come_to(
    real: bytes | None, copy: bytes | None, failed: bool, expected: str
) -> None:
    assert outcome_of(real, copy, failed=failed) == expected
