"""The code in docs/sdk.md is code that works."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiflow_sdk
from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk.testing import serving

DOCS = Path(__file__).parents[3] / "docs" / "sdk.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


class Imaging(imaging_pb2_grpc.ImagingServiceServicer):
    def ComposeMainImage(self, request: Any, _: Any) -> Any:  # noqa: N802 - as in the proto
        return imaging_pb2.ComposeMainImageResponse(image=imaging_pb2.Image(data=b"x"))


def test_its_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cup.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {name: getattr(aiflow_sdk, name) for name in aiflow_sdk.__all__}
    seen |= {
        "np": np,
        "photo": b"x",
        "wait": lambda _: None,
        "request": imaging_pb2.ComposeMainImageRequest(),
    }
    outputs = {"boxes": np.zeros((1, 20, 4)), "labels": np.array([[b"cup"]], dtype=object)}
    imaging: Any = Imaging()  # type: ignore[abstract]  # the one method that is called
    servicers = [(imaging_pb2_grpc.add_ImagingServiceServicer_to_server, imaging)]
    with serving({"detector": lambda _: outputs}, servicers=servicers) as server:
        monkeypatch.setenv("AIFLOW_ROUTER", server.address)
        assert len(BLOCKS) == 4
        for block in BLOCKS:
            seen["client"] = aiflow_sdk.Client()
            exec(compile(ast.parse(block), str(DOCS), "exec"), seen)
            seen["client"].close()
        seen["test_a_busy_detector_is_asked_again"]()
