"""Triton's side of the detector; what it computes is in aiflow_models.detector."""

import triton_python_backend_utils as pb_utils
from aiflow_models.detector import DetectorModel
from aiflow_models.serving import Batch, gpu_of, threads_of


class TritonPythonModel:
    def initialize(self, args):
        model = DetectorModel(gpu=gpu_of(args), threads=threads_of(args))
        self._batch = Batch(model, pb_utils)

    def execute(self, requests):
        return self._batch.execute(requests)

    def finalize(self):
        self._batch.close()
