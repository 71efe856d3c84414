"""The `aiflow` command against real servers: output, files, exit codes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import errors, tensors
from aiflow_sdk.command.main import main
from aiflow_sdk.testing import Failure, Server, serving

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 20


def run(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(words), input=stdin, prog_name="aiflow")


class Imaging(imaging_pb2_grpc.ImagingServiceServicer):
    def ComposeMainImage(self, request: Any, _: Any) -> Any:  # noqa: N802 - as in the proto
        if not request.photo.data:
            raise errors.BadInputError("photo is empty", violations={"photo.data": "is empty"})
        return imaging_pb2.ComposeMainImageResponse(
            image=imaging_pb2.Image(data=PNG, media_type=f"{len(request.photo.data)}", width=7)
        )


@pytest.fixture
def mesh() -> Iterator[Server]:
    add = imaging_pb2_grpc.add_ImagingServiceServicer_to_server
    servicer: Any = Imaging()  # type: ignore[abstract]  # the one method that is called
    with serving({"echo": dict}, servicers=[(add, servicer)], api_key="key") as server:
        yield server


class Detector(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A model that describes itself, as Triton's do."""

    def ModelMetadata(self, request: Any, _: Any) -> Any:  # noqa: N802 - as in the proto
        metadata = service_pb2.ModelMetadataResponse(name=request.name, platform="python")
        metadata.inputs.add(name="image", datatype="BYTES", shape=[-1, 1])
        metadata.inputs.add(name="box", datatype="FP32", shape=[-1, 4])
        return metadata

    def ModelInfer(self, request: Any, _: Any) -> Any:  # noqa: N802 - as in the proto
        inputs = tensors.from_request(request)
        return tensors.to_response(
            request.model_name,
            {
                "mask": inputs["image"],
                "box": inputs["box"],
                "label": b"cup",
                "size": np.array([[len(inputs["image"].flat[0])]], np.int32),
            },
        )


@contextlib.contextmanager
def detecting() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add: Any = service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    add(Detector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_help_lists_every_command_in_a_line_without_importing_them() -> None:
    script = (
        "import sys; from click.testing import CliRunner; "
        "from aiflow_sdk.command.main import main; "
        "print(CliRunner().invoke(main, ['--help']).output); "
        "print(sorted({'grpc', 'numpy', 'tritonclient', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    names = {e.name for e in importlib.metadata.entry_points(group="aiflow.commands")}
    lines = done.stdout.splitlines()
    for name in names:
        line = next(line for line in lines if line.split()[:1] == [name])
        assert len(line.split()) > 3
    assert lines[-1] == "[]"


def test_the_version_is_told() -> None:
    assert run("--version").output == f"aiflow {importlib.metadata.version('aiflow')}\n"


def test_an_unknown_command_names_the_nearest() -> None:
    result = run("statsu")
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.output


def test_a_command_whose_extra_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(entry: importlib.metadata.EntryPoint) -> click.Command:
        raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", load)
    result = run("router", "--config", "x")
    assert result.exit_code == 1
    assert "pip install 'aiflow[router]'" in result.output
    assert "router " in run("--help").output


def test_status_shows_what_is_served(mesh: Server) -> None:
    result = run("status", "--router", mesh.address, "--api-key", "key", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.output)
    assert shown["health"] == "SERVING"
    assert [e["models"] for e in shown["endpoints"]] == [["echo"], []]
    assert [e["state"] for e in shown["endpoints"]] == ["READY", "READY"]
    table = run("status", "--router", mesh.address).output
    assert "echo" in table
    assert "READY" in table


def test_a_router_that_is_away_is_exit_1_and_what_to_do() -> None:
    result = run("status", "--router", "127.0.0.1:1", "--timeout", "5")
    assert result.exit_code == 1
    assert "aiflow up" in result.output


def test_infer_reads_files_and_writes_the_pictures_of_the_answer(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(PNG)
    with detecting() as address:
        words = ("infer", "m", "--router", address, "--input", f"image=@{photo}")
        shown = run(*words, "--input", "box=1,2,3.5,4", "--out", str(tmp_path / "out"), "--json")
    assert shown.exit_code == 0, shown.output
    outputs = json.loads(shown.stdout)["outputs"]
    assert outputs["box"] == {"shape": [1, 4], "data": [[1.0, 2.0, 3.5, 4.0]]}
    assert outputs["label"]["data"] == [["cup"]]
    assert outputs["size"]["data"] == [[len(PNG)]]
    written = Path(outputs["mask"]["data"][0][0]["file"])
    assert written == tmp_path / "out" / "m-mask.png"
    assert written.read_bytes() == PNG


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("no such input", ["--input", "img=x"], "it takes: image (BYTES [-1, 1]), box (FP32"),
        ("an input is missing", ["--input", "image=x"], "--input box=... is missing"),
        ("not a number", ["--input", "box=1,2,x,4"], "FP32 is needed"),
        ("too few numbers", ["--input", "box=1,2,3"], "3 values do not fit the shape [-1, 4]"),
        ("a file that is not there", ["--input", "image=@/no/such"], "cannot be read"),
        ("no equals sign", ["--input", "image"], "write NAME=VALUE"),
        ("twice the same", ["--input", "image=a", "--input", "image=b"], "given twice"),
        ("a timeout of nothing", ["--timeout", "0"], "is not in the range"),
    ],
)
def test_infer_says_what_is_wrong_with_its_arguments(
    what: str, words: list[str], message: str
) -> None:
    with detecting() as address:
        result = run("infer", "m", "--router", address, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_call_finds_the_method_by_reflection_and_loads_bytes_from_files(
    mesh: Server, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(PNG)
    data = json.dumps({"photo": {"data": f"@{photo}"}, "title": "Cup"})
    words = ("call", "ImagingService/ComposeMainImage", "--router", mesh.address)
    keyed = (*words, "--api-key", "key")
    shown = json.loads(run(*keyed, "--data", data).output)
    assert shown["image"]["width"] == 7
    assert shown["image"]["media_type"] == str(len(PNG))
    assert shown["image"]["data"].startswith(f"<png, {len(PNG)} bytes")
    piped = run(*keyed, "--data", "-", "--out", str(tmp_path), stdin=data)
    written = Path(json.loads(piped.output)["image"]["data"][1:])
    assert written.read_bytes() == PNG
    alone = json.loads(run(*keyed, "--data", data, "--json").output)
    assert alone["image"]["data"].startswith("iVBORw0K")


def test_call_prints_a_stream_one_document_a_line(mesh: Server) -> None:
    result = run(
        *("call", "inference.GRPCInferenceService/ModelStreamInfer", "--router", mesh.address),
        *("--api-key", "key", "--data", '[{"model_name": "echo"}, {"model_name": "nobody"}]'),
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert lines[0]["infer_response"]["model_name"] == "echo"
    assert "no model 'nobody'" in lines[1]["error_message"]


@pytest.mark.parametrize(
    ("what", "words", "code", "message"),
    [
        ("no such service", ["ImageService/X"], 1, "did you mean aiflow.imaging.v1.ImagingService"),
        ("no such method", ["ImagingService/Compose"], 1, "did you mean Compose"),
        ("no method at all", ["ImagingService"], 2, "SERVICE/METHOD"),
        ("not JSON", ["ImagingService/RenderOverlay", "--data", "{"], 2, "is not JSON"),
        ("no object", ["ImagingService/RenderOverlay", "--data", "3"], 2, "a JSON object"),
        ("an unknown field", ["ImagingService/RenderOverlay", "--data", '{"a":1}'], 2, '"a"'),
        ("refused", ["ImagingService/ComposeMainImage"], 1, "INVALID_ARGUMENT/BAD_INPUT"),
    ],
)
def test_call_says_what_is_wrong(
    mesh: Server, what: str, words: list[str], code: int, message: str
) -> None:
    result = run("call", *words, "--router", mesh.address, "--api-key", "key")
    assert result.exit_code == code
    assert message in " ".join(result.output.split())


def test_a_failed_call_prints_reason_and_request_id_and_no_key(mesh: Server) -> None:
    words = ("call", "ImagingService/ComposeMainImage", "--router", mesh.address)
    refused = run(*words, "--api-key", "wrong-key")
    assert refused.exit_code == 1
    assert "UNAUTHENTICATED/KEY_INVALID" in refused.output
    assert "wrong-key" not in refused.output
    mesh.fail_next(Failure(error=errors.RateLimitedError("slow down", retry_after_s=3)))
    limited = run(*words, "--api-key", "key")
    assert "try again after 3 s" in limited.output
    assert f"request id {mesh.calls[-1].metadata['x-request-id']!s}" in limited.output
