"""What Triton's own examples do with tritonclient, through the router to a real Triton."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as aio_client
from fixtures.triton import PrepareTriton
from integration.router.kit import mesh
from tritonclient.utils import InferenceServerException

from aiflow_servers.triton.keeper import keeping

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(900),  # the first one installs Triton
]

# Answers with what it got, and with the request's parameters as text.
MIRROR = """
import json, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        said = json.loads(request.parameters())
        time.sleep(float(said.get("seconds", 0)))
        give = [
            pb.Tensor(out, pb.get_input_tensor_by_name(request, into).as_numpy())
            for into, out in (("TEXT", "TEXT_OUT"), ("VALUES", "VALUES_OUT"))
        ]
        parameters = np.array([json.dumps(said, sort_keys=True)], dtype=np.object_)
        return pb.InferenceResponse([*give, pb.Tensor("PARAMETERS", parameters)])
"""
MIRROR_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
        { name: "VALUES" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "TEXT_OUT" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "VALUES_OUT" data_type: TYPE_FP32 dims: [ -1 ] },
         { name: "PARAMETERS" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
# Adds up, in each sequence by itself.
SUM = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value, start, key = (
            pb.get_input_tensor_by_name(request, name).as_numpy().flatten()[0]
            for name in ("VALUE", "START", "KEY")
        )
        self.sums[key] = value + (0 if start else self.sums[key])
        return pb.InferenceResponse([pb.Tensor("SUM", np.array([[self.sums[key]]], np.int32))])
"""
SUM_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "VALUE" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "SUM" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  oldest { max_candidate_sequences: 4 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "KEY" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
VALUES = np.array([0.1, 0.7, 0.2], np.float32)
TEXTS = np.array([b"", "模型".encode(), bytes(range(256))], np.object_)


@asynccontextmanager
async def served(prepare_triton: PrepareTriton, folder: Path) -> AsyncIterator[str]:
    """The address of a router in front of a Triton with both models."""
    for name, source, config in (("mirror", MIRROR, MIRROR_CONFIG), ("sum", SUM, SUM_CONFIG)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1/model.py").write_text(source)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    launch = prepare_triton(repository=folder, models=[])
    async with keeping(launch, registrar=None) as keeper, mesh() as m:
        await m.register(keeper.address, models=("mirror", "sum"), services=(), backend="triton")
        yield m.router.grpc_address


def inputs(client: Any, texts: Any = TEXTS, values: Any = VALUES) -> list[Any]:
    text = client.InferInput("TEXT", list(texts.shape), "BYTES")
    text.set_data_from_numpy(texts)
    value = client.InferInput("VALUES", list(values.shape), "FP32")
    value.set_data_from_numpy(values)
    return [text, value]


def simple(triton: Any) -> None:
    wanted = [sync_client.InferRequestedOutput(name) for name in ("TEXT_OUT", "VALUES_OUT")]
    result = triton.infer("mirror", inputs(sync_client), outputs=wanted, request_id="7")
    assert result.as_numpy("TEXT_OUT").tolist() == TEXTS.tolist()
    assert (result.as_numpy("VALUES_OUT") == VALUES).all()
    assert result.as_numpy("PARAMETERS") is None
    assert result.get_response().id == "7"


def async_infer(triton: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for number in range(10):
        triton.async_infer(
            "mirror",
            inputs(sync_client),
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    got = [answers.get(timeout=20) for _ in range(10)]
    assert not any(error for _, error in got)
    assert {result.get_response().id for result, _ in got} == {str(n) for n in range(10)}
    handle = triton.async_infer(
        "mirror",
        inputs(sync_client),
        callback=lambda result, error: answers.put((result, error)),
        parameters={"seconds": "3"},
    )
    handle.cancel()
    _, error = answers.get(timeout=10)
    assert "CANCELLED" in str(error.status())


def sequences(triton: Any) -> None:
    """Two on one stream, interleaved, as the stream example does."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.start_stream(callback=lambda result, error: answers.put((result, error)))
    for step in range(4):
        for key in (1000, 1001):
            value = sync_client.InferInput("VALUE", [1, 1], "INT32")
            value.set_data_from_numpy(np.array([[step + key - 999]], np.int32))
            triton.async_stream_infer(
                "sum",
                [value],
                request_id=f"{key}-{step}",
                sequence_id=key,
                sequence_start=step == 0,
                sequence_end=step == 3,
            )
    sums = {}
    for _ in range(8):
        result, error = answers.get(timeout=20)
        assert error is None, error.message()
        sums[result.get_response().id] = result.as_numpy("SUM").item()
    triton.stop_stream()
    assert [sums[f"1000-{step}"] for step in range(4)] == [1, 3, 6, 10]
    assert [sums[f"1001-{step}"] for step in range(4)] == [2, 5, 9, 14]


def a_failure_in_a_stream(triton: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.start_stream(callback=lambda result, error: answers.put((result, error)))
    triton.async_stream_infer("mirror", inputs(sync_client)[:1])
    _, error = answers.get(timeout=20)
    assert isinstance(error, InferenceServerException)
    triton.async_stream_infer("mirror", inputs(sync_client))  # The stream goes on.
    result, error = answers.get(timeout=20)
    assert error is None
    assert (result.as_numpy("VALUES_OUT") == VALUES).all()
    triton.stop_stream()


def parameters_and_headers(triton: Any) -> None:
    given = {"name": "x", "count": 3, "yes": True}
    result = triton.infer(
        "mirror", inputs(sync_client), parameters=given, headers={"x-request-id": "job-1"}
    )
    said = result.as_numpy("PARAMETERS")[0].decode()
    assert said == '{"count": 3, "name": "x", "yes": true}'


def classification(triton: Any) -> None:
    wanted = [sync_client.InferRequestedOutput("VALUES_OUT", class_count=2)]
    result = triton.infer("mirror", inputs(sync_client), outputs=wanted)
    best = [entry.decode().split(":") for entry in result.as_numpy("VALUES_OUT")]
    assert [index for _, index, *_ in best] == ["1", "2"]
    assert [float(score) for score, *_ in best] == pytest.approx([0.7, 0.2])


def compression(triton: Any) -> None:
    large = np.zeros(1_000_000, np.float32)
    for algorithm in ("gzip", "deflate"):
        result = triton.infer(
            "mirror", inputs(sync_client, values=large), compression_algorithm=algorithm
        )
        assert (result.as_numpy("VALUES_OUT") == large).all()


def client_timeout(triton: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("mirror", inputs(sync_client), parameters={"seconds": "2"}, client_timeout=0.2)
    assert "DEADLINE_EXCEEDED" in str(caught.value.status())
    simple(triton)


def what_the_server_tells(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("sum")
    assert triton.is_model_ready("sum", "1")
    assert not triton.is_model_ready("nothing")
    assert triton.get_server_metadata(as_json=True)["name"] == "aiflow"
    names = [tensor.name for tensor in triton.get_model_metadata("mirror").inputs]
    assert names == ["TEXT", "VALUES"]
    assert triton.get_model_config("sum").config.HasField("sequence_batching")
    statistics = triton.get_inference_statistics("mirror").model_stats
    assert statistics[0].inference_count >= 1
    assert {stats.name for stats in triton.get_inference_statistics().model_stats} == {
        "mirror",
        "sum",
    }
    index = triton.get_model_repository_index(as_json=True)["models"]
    assert {entry["name"] for entry in index} == {"mirror", "sum"}


def what_is_not_routed(triton: Any) -> None:
    """Refused by name, with where to go."""
    calls: list[Callable[[], Any]] = [
        lambda: triton.register_system_shared_memory("region", "/region", 64),
        triton.get_system_shared_memory_status,
        lambda: triton.unregister_cuda_shared_memory("region"),
        lambda: triton.load_model("sum"),
        lambda: triton.unload_model("sum"),
        lambda: triton.get_trace_settings("sum"),
        triton.get_log_settings,
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match="that Triton directly") as caught:
            call()
        assert "UNIMPLEMENTED" in str(caught.value.status())


EXAMPLES = (
    *(simple, async_infer, sequences, a_failure_in_a_stream, parameters_and_headers),
    *(classification, compression, client_timeout, what_the_server_tells, what_is_not_routed),
)


async def test_each_of_tritons_examples(prepare_triton: PrepareTriton, tmp_path: Path) -> None:
    """In one test, because the Triton with these models takes seconds to start."""
    keepalive = sync_client.KeepAliveOptions(
        keepalive_time_ms=10_000,
        keepalive_timeout_ms=5_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )

    def use(address: str) -> None:
        for options in (None, keepalive):
            with sync_client.InferenceServerClient(
                address, ssl=False, keepalive_options=options
            ) as triton:
                for example in EXAMPLES:
                    example(triton)

    async with served(prepare_triton, tmp_path / "repository") as address:
        await asyncio.to_thread(use, address)
        async with aio_client.InferenceServerClient(address) as triton:
            result = await triton.infer(
                "mirror", inputs(aio_client), compression_algorithm="gzip", parameters={"a": "b"}
            )
            assert result.as_numpy("TEXT_OUT").tolist() == TEXTS.tolist()

            async def steps() -> AsyncIterator[dict[str, Any]]:
                for step in range(3):
                    value = aio_client.InferInput("VALUE", [1, 1], "INT32")
                    value.set_data_from_numpy(np.array([[step]], np.int32))
                    yield {
                        "model_name": "sum",
                        "inputs": [value],
                        "sequence_id": 7,
                        "sequence_start": step == 0,
                        "sequence_end": step == 2,
                    }

            sums = [
                result.as_numpy("SUM").item()
                async for result, error in triton.stream_infer(steps())
                if error is None
            ]
            assert sums == [0, 1, 3]
