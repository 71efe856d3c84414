"""Plain Python values and numpy arrays to messages of the Open Inference Protocol, and back."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from aiflow_sdk._plan import Plan, Reply
from aiflow_sdk.errors import AiflowError, BackendError, BadInputError

Array: TypeAlias = npt.NDArray[Any]
TensorValue: TypeAlias = Array | bytes | bytearray | memoryview | str | Sequence[bytes | str]
Parameter: TypeAlias = bool | int | float | str

_PROTOCOL_LIMIT = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResult:
    """A model's answer; `result["boxes"]` is an output as a numpy array (read-only, no copy)."""

    outputs: Mapping[str, Array]
    """By name, with the batch dimension; BYTES as object arrays of bytes."""
    model: str
    """The model that answered: another one than asked for where a fallback stepped in."""
    version: str
    served_by: str = ""
    """Who answered, as model@address; empty where no router was in between."""
    attempts: int = 1
    """Attempts that this client made; the router's own are in `router_attempts`."""
    router_attempts: int = 0
    fallback: str = ""
    """Why another model answered; empty where none did."""
    request_id: str = ""
    elapsed_ms: float = 0.0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        try:
            return self.outputs[name]
        except KeyError:
            known = ", ".join(sorted(self.outputs)) or "none"
            raise KeyError(f"{self.model} gave no output {name!r}; it gave: {known}") from None


def to_request(
    model: str,
    inputs: Mapping[str, TensorValue],
    *,
    version: str = "",
    outputs: Sequence[str] | None = None,
    parameters: Mapping[str, Parameter] | None = None,
    request_id: str = "",
) -> Any:
    """A `ModelInferRequest`; raises BadInputError naming the input or parameter that is wrong."""
    if not model:
        raise BadInputError("the model's name is empty", violations={"model": "is empty"})
    if isinstance(outputs, str):
        raise BadInputError(
            "outputs is one string; give a list of names", violations=_at("outputs")
        )
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        array = to_array(name, value)
        tensor = request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
        tensor.shape.extend(array.shape)
        request.raw_input_contents.append(_raw(array))
    for name in outputs or ():
        request.outputs.add(name=name)
    for key, parameter in (parameters or {}).items():
        _set_parameter(request.parameters[key], key, parameter)
    return request


def to_array(name: str, value: TensorValue) -> Array:
    """The tensor that `value` means: an array as it is, bytes or text BYTES [1,1], several [n,1].

    Raises:
        BadInputError: the value is none of these, or its dtype has no tensor type.
    """
    if isinstance(value, bytes | bytearray | memoryview | str):
        return _bytes_tensor(name, [value])
    if not isinstance(value, np.ndarray):
        if isinstance(value, Sequence) and value:
            return _bytes_tensor(name, value)
        raise _bad_input(
            name, f"a numpy array, bytes, text or a list of bytes is needed, not {value!r:.60}"
        )
    if value.dtype.kind in "US":
        value = value.astype(object)
    elif value.dtype.byteorder == ">":  # the protocol is little-endian
        value = value.astype(value.dtype.newbyteorder("<"))
    if value.dtype == object and not all(isinstance(v, bytes | str) for v in value.flat):
        raise _bad_input(name, "an array of objects must hold bytes or text only")
    if np_to_triton_dtype(value.dtype) is None:
        raise _bad_input(name, f"dtype {value.dtype} has no tensor type; convert it, as to float32")
    return value


def to_result(reply: Reply[Any]) -> InferResult:
    """Decodes a `ModelInferResponse`; raises BackendError where its tensors do not add up."""
    response = reply.message
    decoder = tritonclient.grpc.InferResult(response)
    outputs: dict[str, Array] = {}
    for output in response.outputs:
        try:
            array = decoder.as_numpy(output.name)
        except Exception as error:  # whatever a malformed answer makes numpy or struct raise
            raise BackendError(
                f"{response.model_name} answered {output.name!r} as {output.datatype} "
                f"{list(output.shape)}, and its bytes do not fit: {error}",
                request_id=reply.request_id,
            ) from error
        if array is not None:
            outputs[output.name] = array
    return InferResult(
        outputs=outputs,
        model=response.model_name,
        version=response.model_version,
        served_by=reply.served_by,
        attempts=reply.attempts,
        router_attempts=reply.router_attempts,
        fallback=reply.fallback,
        request_id=reply.request_id,
        elapsed_ms=reply.elapsed_ms,
        parameters={
            name: getattr(parameter, kind)
            for name, parameter in response.parameters.items()
            if (kind := parameter.WhichOneof("parameter_choice"))
        },
    )


class Feed:
    """The requests of a stream. gRPC reads them on its own and hides what is wrong with them."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.error: AiflowError | None = None

    async def requests(
        self,
        inputs: Iterable[Mapping[str, TensorValue]] | AsyncIterable[Mapping[str, TensorValue]],
    ) -> AsyncIterator[Any]:
        if isinstance(inputs, AsyncIterable):
            async for one in inputs:
                yield self.request(one)
        else:
            for one in inputs:
                yield self.request(one)

    def request(self, inputs: Mapping[str, TensorValue]) -> Any:
        try:
            return to_request(self._model, inputs)
        except AiflowError as error:
            self.error = error
            raise


def to_streamed_result(model: str, answer: Any, *, plan: Plan) -> InferResult:
    """Decodes a `ModelStreamInferResponse`; raises BackendError where it says one."""
    if answer.error_message:
        raise BackendError(
            answer.error_message, metadata={"model": model}, request_id=plan.request_id
        )
    return to_result(plan.reply(answer.infer_response, metadata=(), attempts=1))


def to_response(model: str, outputs: Mapping[str, TensorValue], *, request_id: str = "") -> Any:
    """A `ModelInferResponse`, for servers written in Python."""
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request_id)
    for name, value in outputs.items():
        array = to_array(name, value)
        tensor = response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
        tensor.shape.extend(array.shape)
        response.raw_output_contents.append(_raw(array))
    return response


def from_request(request: Any) -> dict[str, Array]:
    """The inputs of a `ModelInferRequest`, for servers written in Python."""
    # Inputs and outputs look the same on the wire, so the client's decoder serves both.
    response = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.outputs[-1].contents.CopyFrom(tensor.contents)
    decoder = tritonclient.grpc.InferResult(response)
    try:
        return {tensor.name: decoder.as_numpy(tensor.name) for tensor in request.inputs}
    except Exception as error:  # whatever a malformed request makes numpy or struct raise
        raise BadInputError(f"the inputs' bytes do not fit their shapes: {error}") from error


def _raw(array: Array) -> bytes:
    if array.dtype == object:
        serialized = serialize_byte_tensor(array)
        return bytes(serialized.item()) if serialized.size else b""
    return array.tobytes()


def _bytes_tensor(name: str, values: Sequence[Any]) -> Array:
    array: Array = np.empty((len(values), 1), dtype=object)
    for index, value in enumerate(values):
        if isinstance(value, str):
            array[index, 0] = value.encode()
        elif isinstance(value, bytes | bytearray | memoryview):
            array[index, 0] = bytes(value)
        else:
            raise _bad_input(
                name,
                f"item {index} is {type(value).__name__}; a list holds bytes or text, "
                "numbers go in a numpy array",
            )
    return array


def _set_parameter(slot: Any, name: str, value: Parameter) -> None:
    match value:
        case bool():
            slot.bool_param = value
        case int() if -_PROTOCOL_LIMIT <= value < _PROTOCOL_LIMIT:
            slot.int64_param = value
        case float():
            slot.double_param = value
        case str():
            slot.string_param = value
        case _:
            raise BadInputError(
                f"parameter {name!r} is {value!r:.60}; bool, int (64 bit), float or str is needed",
                violations=_at(name),
            )


def _bad_input(name: str, what: str) -> BadInputError:
    return BadInputError(f"input {name!r}: {what}", violations={name: what})


def _at(name: str) -> dict[str, str]:
    return {name: "has the wrong type"}
