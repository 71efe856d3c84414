"""Values become tensors and come back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiflow_sdk import BackendError, BadInputError, Reply, tensors

DTYPES = st.sampled_from(
    ["?", "<i1", "<i2", "<i4", "<i8", "<u1", "<u8", "<f2", "<f4", "<f8", ">f4"]
)


@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_arrays_arrive_with_shape_and_values(array: Any) -> None:
    got = tensors.from_request(tensors.to_request("m", {"x": array}))["x"]
    assert got.shape == array.shape
    assert got.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(got, array)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_bytes_arrive_whole_zeros_at_the_end_too(values: list[bytes]) -> None:
    got = tensors.from_request(tensors.to_request("m", {"x": values}))["x"]
    assert got.shape == (len(values), 1)
    assert list(got.flat) == values


@pytest.mark.parametrize(
    ("what", "value", "shape", "first"),
    [
        ("text is BYTES [1,1]", "köln", (1, 1), "köln".encode()),
        ("a bytearray is one value", bytearray(b"ab"), (1, 1), b"ab"),
        ("an array of text keeps its shape", np.array([["a", "b"]]), (1, 2), b"a"),
        ("a view that is not contiguous", np.arange(6).reshape(2, 3).T, (3, 2), 0),
    ],
)
def test_other_values_have_one_meaning(
    what: str, value: Any, shape: tuple[int, ...], first: Any
) -> None:
    got = tensors.from_request(tensors.to_request("m", {"x": value}))["x"]
    assert got.shape == shape
    assert got.flat[0] == first


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("a list of numbers has no dtype", [1, 2]),
        ("a list that is part bytes", [b"a", 1]),
        ("an empty list has no shape", []),
        ("None", None),
        ("a dtype that no tensor has", np.array(["2026-01-01"], "datetime64[D]")),
        ("complex numbers", np.array([1j])),
        ("objects that are no bytes", np.array([{}], dtype=object)),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(what: str, value: Any) -> None:
    with pytest.raises(BadInputError) as caught:
        tensors.to_request("m", {"picture": value})
    assert "picture" in caught.value.violations


def test_an_answer_whose_bytes_do_not_fit_is_the_backends_error() -> None:
    response = tensors.to_response("m", {"y": np.ones((2, 2), np.float32)})
    response.raw_output_contents[0] = b"\x00" * 7
    with pytest.raises(BackendError, match=r"'y' as FP32 \[2, 2\]"):
        tensors.to_result(_reply(response))


def test_parameters_keep_their_types() -> None:
    parameters: dict[str, tensors.Parameter] = {"b": True, "i": 3, "f": 0.5, "s": "x"}
    request = tensors.to_request("m", {}, parameters=parameters, outputs=["a"])
    assert [p.WhichOneof("parameter_choice") for _, p in sorted(request.parameters.items())] == [
        "bool_param",
        "double_param",
        "int64_param",
        "string_param",
    ]
    assert [output.name for output in request.outputs] == ["a"]
    with pytest.raises(BadInputError, match="64 bit"):
        tensors.to_request("m", {}, parameters={"i": 2**63})


def _reply(message: Any) -> Reply[Any]:
    return Reply(
        message=message,
        served_by="",
        attempts=1,
        router_attempts=0,
        fallback="",
        request_id="r",
        elapsed_ms=1.0,
    )
