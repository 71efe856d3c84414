"""A batch of requests: answers in their order, and one that is wrong fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_models.errors import BadInputError
from aiflow_models.serving import Batch, gpu_of, threads_of

# What Triton gives a model as `triton_python_backend_utils`, which exists only inside it;
# tests/integration/triton has the real one.


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    name: str
    value: Any

    def as_numpy(self) -> Any:
        return self.value


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


def get_input_tensor_by_name(request: Mapping[str, Any], name: str) -> Tensor:
    return Tensor(name, request[name])


UTILS = SimpleNamespace(
    TritonError=TritonError,
    Tensor=Tensor,
    InferenceResponse=InferenceResponse,
    get_input_tensor_by_name=get_input_tensor_by_name,
)


class Doubling:
    """A model that doubles numbers and refuses negative ones."""

    inputs: Sequence[str] = ("number",)

    def __init__(self) -> None:
        self.calls: list[list[float]] = []

    def prepare(self, row: Mapping[str, Any]) -> float:
        if row["number"][0] < 0:
            raise BadInputError(f"{row['number'][0]} is negative")
        return float(row["number"][0])

    def infer(self, rows: Sequence[float]) -> list[dict[str, Any]]:
        self.calls.append(list(rows))
        return [{"double": np.array([row * 2], np.float32)} for row in rows]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Batch, Doubling]]:
    model = Doubling()
    # Without the check of numpy, which is for Triton's own environment.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "__version__", "1.26.4")
        batch = Batch(model, UTILS)
    yield batch, model
    batch.close()


@given(st.lists(st.lists(st.integers(-3, 99), min_size=1, max_size=4), max_size=8))
def test_every_request_gets_its_own_rows_or_its_own_error(
    served: tuple[Batch, Doubling], requests: list[list[int]]
) -> None:
    batch, model = served
    model.calls.clear()
    answers = batch.execute([{"number": np.array([numbers]).T} for numbers in requests])
    assert len(answers) == len(requests)
    for numbers, answer in zip(requests, answers, strict=True):
        wrong = [number for number in numbers if number < 0]
        if wrong:
            assert str(answer.error) == f"BAD_INPUT: {wrong[0]} is negative"
            assert answer.error.code == TritonError.INVALID_ARG
            assert answer.output_tensors == []
        else:
            assert answer.error is None
            (tensor,) = answer.output_tensors
            assert tensor.name == "double"
            assert tensor.value.tolist() == [[number * 2] for number in numbers]
    good = [n for numbers in requests if min(numbers) >= 0 for n in numbers]
    assert model.calls == ([good] if good else []), "one call, of good rows alone"


def test_numpy_2_in_tritons_environment_is_refused() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "__version__", "2.3.0")
        with pytest.raises(RuntimeError, match=r"numpy 2\.3\.0 .* install numpy<2 there"):
            Batch(Doubling(), UTILS)


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [pytest.param("GPU", 1, id="on its GPU"), pytest.param("CPU", None, id="on the CPU")],
)
def test_gpu_of(kind: str, gpu: int | None) -> None:
    assert gpu_of({"model_instance_kind": kind, "model_instance_device_id": "1"}) == gpu


@pytest.mark.parametrize(
    ("config", "threads"),
    [
        pytest.param("{}", 8, id="one instance has all cores"),
        pytest.param('{"instance_group": [{"count": 2}, {"count": 2}]}', 2, id="four share them"),
        pytest.param('{"instance_group": [{"count": 99}]}', 1, id="never none"),
    ],
)
def test_threads_of(monkeypatch: pytest.MonkeyPatch, config: str, threads: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert threads_of({"model_config": config}) == threads
