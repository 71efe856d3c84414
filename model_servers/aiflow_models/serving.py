"""What the three models have in common inside Triton: requests to rows, one batch, rows back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from aiflow_models.errors import BadInputError

Row = Mapping[str, Any]  # one picture's tensors by name, without the batch dimension
Prepared = TypeVar("Prepared")


class Model(Protocol[Prepared]):
    """What a model does with rows; Triton appears in none of it."""

    inputs: Sequence[str]

    def prepare(self, row: Row) -> Prepared:
        """Decodes and crops one row; raises BadInputError for that row's request alone."""

    def infer(self, rows: Sequence[Prepared]) -> Sequence[Row]:
        """One stacked call for all rows, and what each gives by output name."""


def gpu_of(args: Mapping[str, str]) -> int | None:
    """The GPU that Triton gave this instance; None for the CPU."""
    return int(args["model_instance_device_id"]) if _on_gpu(args) else None


def _on_gpu(args: Mapping[str, str]) -> bool:
    return args["model_instance_kind"] == "GPU"


class Batch:
    """Runs a model on all requests of one `execute`.

    Args:
        model: what computes.
        utils: Triton's `triton_python_backend_utils`.
    """

    def __init__(self, model: Model[Any], utils: Any) -> None:
        if int(np.__version__.partition(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__} in the models' environment: with numpy 2 Triton's python "
                "backend hands over wrong data without an error; install numpy<2 there"
            )
        self._model = model
        self._utils = utils
        cv2.setNumThreads(1)  # pictures are spread over threads, not one picture's rows
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in their order; a bad one fails alone."""
        rows = [self._rows(request) for request in requests]
        prepared = list(self._threads.map(self._prepare, [row for each in rows for row in each]))
        good: list[Any] = []
        outcomes: list[list[Any] | BadInputError] = []
        for each in rows:
            mine, prepared = prepared[: len(each)], prepared[len(each) :]
            bad = next((item for item in mine if isinstance(item, BadInputError)), None)
            outcomes.append(bad if bad is not None else mine)
            if bad is None:
                good.extend(mine)
        results = list(self._model.infer(good)) if good else []
        responses = []
        for outcome in outcomes:
            if isinstance(outcome, BadInputError):
                responses.append(self._failed(outcome))
            else:
                mine, results = results[: len(outcome)], results[len(outcome) :]
                responses.append(self._answered(mine))
        return responses

    def close(self) -> None:
        self._threads.shutdown()

    def _rows(self, request: Any) -> list[Row]:
        tensors = {
            name: self._utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self._model.inputs
        }
        count = len(next(iter(tensors.values())))
        return [{name: tensor[i] for name, tensor in tensors.items()} for i in range(count)]

    def _prepare(self, row: Row) -> Any:
        try:
            return self._model.prepare(row)
        except BadInputError as error:
            return error

    def _failed(self, error: BadInputError) -> Any:
        utils = self._utils
        return utils.InferenceResponse(
            error=utils.TritonError(str(error), utils.TritonError.INVALID_ARG)
        )

    def _answered(self, rows: Sequence[Row]) -> Any:
        tensors = [
            self._utils.Tensor(name, np.stack([row[name] for row in rows])) for name in rows[0]
        ]
        return self._utils.InferenceResponse(output_tensors=tensors)


def threads_of(args: Mapping[str, str]) -> int:
    """Threads of one network call, so that all instances together fill the cores once."""
    groups = json.loads(args["model_config"]).get("instance_group", [])
    instances = sum(int(group.get("count", 1)) for group in groups) or 1
    return max(1, (os.cpu_count() or 1) // instances)
