"""An unchanged tritonclient works against the router as it does against Triton."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as async_client
from tritonclient.utils import InferenceServerException

from aiflow_sdk import Client
from aiflow_sdk.command.mesh import Mesh


@pytest.fixture
def triton(client: Client, whole_mesh: Mesh) -> Iterator[Any]:
    assert client.router == whole_mesh.router
    triton = sync_client.InferenceServerClient(whole_mesh.router)
    yield triton
    triton.close()


def picture_input(module: Any, photo: bytes) -> list[Any]:
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], object))
    return [tensor]


def test_inference(triton: Any, photo: bytes) -> None:
    found = triton.infer("detector", picture_input(sync_client, photo))
    assert found.as_numpy("count").item() >= 1
    assert found.as_numpy("boxes").shape == (1, 20, 4)


async def test_inference_with_asyncio(client: Client, whole_mesh: Mesh, photo: bytes) -> None:
    assert client.ready("detector")
    async with async_client.InferenceServerClient(whole_mesh.router) as triton:
        found = await triton.infer("detector", picture_input(async_client, photo))
        assert found.as_numpy("count").item() >= 1
        assert await triton.is_model_ready("detector")


def test_streamed_inference(triton: Any, photo: bytes) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(5):
        triton.async_stream_infer(
            "detector", picture_input(sync_client, photo), request_id=str(number)
        )
    seen = set()
    for _ in range(5):
        result, error = answers.get(timeout=20)
        assert error is None
        seen.add(result.get_response().id)
    triton.stop_stream()
    assert seen == {"0", "1", "2", "3", "4"}


def test_health_metadata_configuration_and_statistics(triton: Any, photo: bytes) -> None:
    triton.infer("detector", picture_input(sync_client, photo))
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("detector")
    assert not triton.is_model_ready("detektor")
    assert triton.get_server_metadata().name
    assert [t.name for t in triton.get_model_metadata("detector").inputs] == ["image"]
    assert triton.get_model_config("detector").config.max_batch_size >= 16
    statistics = triton.get_inference_statistics("detector").model_stats
    assert statistics[0].inference_count >= 1
    assert {m.name for m in triton.get_model_repository_index().models} >= {
        "detector",
        "cutout",
        "cuboid",
    }


def test_an_unknown_model_is_said_by_status(triton: Any, photo: bytes) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("detektor", picture_input(sync_client, photo))
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert "detector" in caught.value.message()
