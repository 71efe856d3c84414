"""Opens onnxruntime sessions, on the device that Triton gave the instance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def weights() -> Path:
    """The folder that holds the weights, from AIFLOW_WEIGHTS."""
    folder = os.environ.get("AIFLOW_WEIGHTS")
    if not folder:
        raise RuntimeError("AIFLOW_WEIGHTS names no folder: start Triton through `aiflow triton`")
    return Path(folder)


class Network:
    """One network on one device.

    Args:
        name: file of the weights folder.
        gpu: number of the GPU; None for the CPU.
        threads: of one call on the CPU.
    """

    def __init__(self, name: str, *, gpu: int | None = None, threads: int | None = None) -> None:
        # Here, so that the arithmetic of the models can be tested without it.
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        # Spinning threads take the cores from decoding and from the other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None:
            # Without the provider onnxruntime would quietly run on the CPU.
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise RuntimeError(
                    f"{name} is to run on GPU {gpu}, but this onnxruntime has no CUDA provider: "
                    "install onnxruntime-gpu into the models' environment"
                )
            # CUDA and cuDNN come from packages beside onnxruntime, where the loader does not look.
            onnxruntime.preload_dlls()
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
        self._session = onnxruntime.InferenceSession(str(weights() / name), options, providers)
        if gpu is not None and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError(f"{name} is to run on GPU {gpu}, but CUDA did not start there")
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Floats) -> list[Floats]:
        result: list[Floats] = self._session.run(None, {self._input: batch})
        return result
