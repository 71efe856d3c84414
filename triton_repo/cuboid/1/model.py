"""Triton's side of the cuboid; what it computes is in aiflow_models.cuboid."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from aiflow_models.cuboid import CuboidModel
from aiflow_models.serving import Batch, gpu_of, threads_of


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = CuboidModel(gpu=gpu_of(args), threads=threads_of(args))
        self._batch = Batch(model, pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._batch.execute(requests)

    def finalize(self) -> None:
        self._batch.close()
