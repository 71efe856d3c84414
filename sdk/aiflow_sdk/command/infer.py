"""`aiflow infer`: asks a model with inputs from the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

from aiflow_sdk.client import Client
from aiflow_sdk.command import files
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.tensors import Array, InferResult


@click.command()
@click.argument("model")
@click.option(
    "--input",
    "-i",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="image=@photo.jpg (a file), box=1,2,3,4, text=hello, or x=[[1,2],[3,4]].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for pictures in the answer; by default the current one.",
)
@calls_router
def infer(*, client: Client, model: str, given: tuple[str, ...], as_json: bool, out: Path) -> None:
    """Ask MODEL once and print its outputs; pictures among them are written to files."""
    result = client.infer(model, parse_inputs(model_metadata(client, model), given))
    outputs = {name: _readable(model, name, array, out) for name, array in result.outputs.items()}
    if as_json:
        click.echo(json.dumps(_document(result, outputs), indent=2))
        return
    for name, array in result.outputs.items():
        shown = outputs[name]
        if array.dtype != object:
            shown = np.array2string(array, precision=4, suppress_small=True, threshold=200)
        click.echo(f"{name} {list(array.shape)}: {shown}")
    click.echo(
        f"{result.model} in {result.elapsed_ms:.0f} ms"
        + (f", served by {result.served_by}" if result.served_by else ""),
        err=True,
    )


def model_metadata(client: Client, model: str) -> Any:
    """The model's `ModelMetadataResponse`: names, datatypes and shapes of what it takes."""
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
    return client.stub(stub, idempotent=True).ModelMetadata(
        service_pb2.ModelMetadataRequest(name=model)
    )


def parse_inputs(metadata: Any, given: Sequence[str]) -> dict[str, Array]:
    """The arrays that NAME=VALUE words mean for a model; raises click.UsageError saying why not."""
    known = {tensor.name: tensor for tensor in metadata.inputs}
    wanted = ", ".join(f"{t.name} ({t.datatype} {list(t.shape)})" for t in metadata.inputs)
    arrays: dict[str, Array] = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"--input {word!r}: write NAME=VALUE")
        if name not in known:
            raise click.UsageError(f"{metadata.name} has no input '{name}'; it takes: {wanted}")
        if name in arrays:
            raise click.UsageError(f"--input {name} is given twice")
        arrays[name] = _parse(known[name], value)
    missing = [name for name in known if name not in arrays]
    if missing:
        raise click.UsageError(f"--input {missing[0]}=... is missing; the model takes: {wanted}")
    return arrays


def _parse(tensor: Any, value: str) -> Array:
    if tensor.datatype == "BYTES":
        return _parse_bytes(tensor, value)
    try:
        loose: Any = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
        numbers = np.array(loose, dtype=triton_to_np_dtype(tensor.datatype))
    except (ValueError, OverflowError) as error:
        raise click.UsageError(
            f"--input {tensor.name}: {tensor.datatype} is needed: {error}"
        ) from error
    return numbers.reshape(_shape(tensor, numbers))


def _parse_bytes(tensor: Any, value: str) -> Array:
    items = [files.read(value[1:]) if value.startswith("@") else value.encode()]
    if value.lstrip().startswith("["):
        try:
            items = [str(item).encode() for item in json.loads(value)]
        except ValueError as error:
            raise click.UsageError(f"--input {tensor.name}: not a JSON list: {error}") from error
    array: Array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(_shape(tensor, array))


def _shape(tensor: Any, array: Array) -> tuple[int, ...]:
    """The array's place in the model's shape, where -1 (such as the batch) is free."""
    wanted = list(tensor.shape)
    fitting = len(array.shape) == len(wanted) and all(
        w in (-1, got) for w, got in zip(wanted, array.shape, strict=True)
    )
    if fitting:
        return array.shape
    free = [place for place, size in enumerate(wanted) if size == -1]
    fixed = math.prod(size for size in wanted if size != -1)
    if free and fixed and array.size % fixed == 0:
        # All that is left over goes to the last free one; a single item has a batch of one.
        for place in free:
            wanted[place] = 1
        wanted[free[-1]] = array.size // fixed
        return tuple(wanted)
    if array.size == math.prod(wanted):
        return tuple(wanted)
    raise click.UsageError(
        f"--input {tensor.name}: {array.size} values do not fit the shape {list(tensor.shape)}"
    )


def _readable(model: str, name: str, array: Array, out: Path) -> Any:
    """Numbers and text as lists; pictures and other bytes as {"file": path}."""
    if array.dtype != object:
        return array.tolist()
    shown: list[str | dict[str, str]] = []
    for index, item in enumerate(array.flat):
        text = None if files.media_suffix(item) else files.as_text(item)
        if text is None:
            stem = f"{model.replace('/', '-')}-{name}" + (f"-{index}" if array.size > 1 else "")
            shown.append({"file": str(files.write(out, stem, item))})
        else:
            shown.append(text)
    places: Array = np.empty(array.size, dtype=object)
    places[:] = shown
    return places.reshape(array.shape).tolist()


def _document(result: InferResult, outputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": result.model,
        "version": result.version,
        "served_by": result.served_by,
        "attempts": result.attempts,
        "router_attempts": result.router_attempts,
        "fallback": result.fallback,
        "request_id": result.request_id,
        "elapsed_ms": round(result.elapsed_ms, 3),
        "outputs": {
            name: {"shape": list(result.outputs[name].shape), "data": data}
            for name, data in outputs.items()
        },
    }
