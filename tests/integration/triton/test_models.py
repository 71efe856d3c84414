"""The project's models on a real Triton: what they find, how requests share batches."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fixtures.triton import PrepareTriton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow_models.cuboid import kind_of
from aiflow_sdk import AsyncClient, InferResult
from aiflow_sdk.errors import BadInputError
from aiflow_servers.triton.keeper import keeping

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(900),  # the first one installs Triton
]

CUP = np.array([178, 22, 414, 296], np.float32)
"""Left, top, right, bottom of the cup in coffee.png, which is 600 x 400."""
TOO_LARGE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 30_000, 30_000)


@pytest.fixture
def coffee(photos: Path) -> bytes:
    return (photos / "coffee.png").read_bytes()


def box_around(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def mask_of(result: InferResult) -> np.ndarray[Any, Any]:
    png = np.frombuffer(result["mask"][0, 0], np.uint8)
    return np.asarray(cv2.imdecode(png, cv2.IMREAD_UNCHANGED))


async def test_the_detector_finds_the_cup(triton_client: AsyncClient, coffee: bytes) -> None:
    found = await triton_client.infer("detector", {"image": coffee})
    shapes = {name: value.shape for name, value in found.outputs.items()}
    assert shapes == {
        "boxes": (1, 20, 4),
        "scores": (1, 20),
        "labels": (1, 20),
        "count": (1, 1),
        "image_size": (1, 2),
    }
    count = found["count"].item()
    assert 1 <= count <= 20
    assert found["image_size"].tolist() == [[600, 400]]
    assert kind_of(found["labels"][0, 0].decode()) == "cup"
    np.testing.assert_allclose(found["boxes"][0, 0], CUP, atol=20)
    scores = found["scores"][0]
    assert (np.diff(scores) <= 0).all(), "best first"
    assert (scores[:count] >= 0.3).all()
    assert not scores[count:].any(), "nothing behind the last"
    assert not found["boxes"][0, count:].any()


async def test_the_cuboid_lies_around_the_cup(triton_client: AsyncClient, coffee: bytes) -> None:
    found = await triton_client.infer("cuboid", {"image": coffee, "box": CUP[None], "label": "cup"})
    assert found["keypoints"].shape == (1, 9, 2)
    assert found["score"].shape == (1, 1)
    assert 0.5 < found["score"].item() <= 1
    centre, corners = found["keypoints"][0, 0], found["keypoints"][0, 1:]
    assert (CUP[:2] < centre).all()
    assert (centre < CUP[2:]).all()
    np.testing.assert_allclose(box_around(corners), CUP, atol=80)


async def test_the_cutout_is_the_cup_and_not_the_corners(
    triton_client: AsyncClient, coffee: bytes
) -> None:
    found = await triton_client.infer("cutout", {"image": coffee, "box": CUP[None]})
    assert found["mask"].shape == (1, 1)
    mask = mask_of(found)
    assert mask.shape == (400, 600)
    assert mask.dtype == np.uint8
    assert mask[100:250, 230:360].mean() > 250, "the body of the cup is product"
    for corner in (mask[:40, :40], mask[:40, -40:], mask[-40:, :40], mask[-40:, -40:]):
        assert not corner.any()


async def test_three_pictures_in_one_request(
    triton_client: AsyncClient, photos: Path, coffee: bytes
) -> None:
    cat = (photos / "chelsea.png").read_bytes()
    alone = [await triton_client.infer("detector", {"image": each}) for each in (coffee, cat)]
    found = await triton_client.infer("detector", {"image": [coffee, cat, coffee]})
    assert found["boxes"].shape == (3, 20, 4)
    assert found["image_size"].tolist() == [[600, 400], [451, 300], [600, 400]]
    for place, one in enumerate((alone[0], alone[1], alone[0])):
        assert found["count"][place] == one["count"][0]
        np.testing.assert_allclose(found["boxes"][place], one["boxes"][0], atol=0.5)


async def counters(client: AsyncClient, model: str) -> tuple[int, int]:
    """Triton's own count of inferences and of executions: nv_inference_count, _exec_count."""
    stub: Any = client.stub(service_pb2_grpc.GRPCInferenceServiceStub)
    answer = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=model))
    return answer.model_stats[0].inference_count, answer.model_stats[0].execution_count


async def counted_calls(
    client: AsyncClient, pictures: list[bytes]
) -> tuple[list[InferResult | BaseException], int, int]:
    """Calls the detector with all pictures at once; also how many inferences and executions."""
    inferences, executions = await counters(client, "detector")
    answers = await asyncio.gather(
        *(client.infer("detector", {"image": each}) for each in pictures), return_exceptions=True
    )
    async with asyncio.timeout(5):
        while True:  # Triton counts a moment after it has answered.
            inferences_after, executions_after = await counters(client, "detector")
            if inferences_after - inferences >= answered(answers):
                return answers, inferences_after - inferences, executions_after - executions
            await asyncio.sleep(0.02)


def answered(answers: list[InferResult | BaseException]) -> int:
    return sum(isinstance(answer, InferResult) for answer in answers)


async def test_calls_at_the_same_time_share_executions(
    triton_client: AsyncClient, coffee: bytes
) -> None:
    answers, inferences, executions = await counted_calls(triton_client, [coffee] * 32)
    assert all(isinstance(answer, InferResult) for answer in answers)
    assert inferences == 32
    assert inferences / executions > 2, "mean batch"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param(b"\x89PNG\r\n\x1a\n and then nothing", "BAD_INPUT", id="a corrupt picture"),
        pytest.param(TOO_LARGE, "BAD_INPUT: the picture of 30000 x 30000", id="a bomb"),
    ],
)
async def test_one_bad_picture_fails_alone_among_31(
    triton_client: AsyncClient, coffee: bytes, bad: bytes, why: str
) -> None:
    pictures = [coffee] * 15 + [bad] + [coffee] * 16
    answers, _, executions = await counted_calls(triton_client, pictures)
    assert executions < 31, "they were in batches"
    refused = answers.pop(15)
    assert isinstance(refused, BadInputError)
    assert refused.code == "INVALID_ARGUMENT"
    assert why in refused.message
    for answer in answers:
        assert isinstance(answer, InferResult)
        np.testing.assert_allclose(answer["boxes"][0, 0], CUP, atol=20)


async def test_without_batching_every_request_runs_alone(
    prepare_triton: PrepareTriton, coffee: bytes
) -> None:
    launch = prepare_triton(batching=False)
    async with keeping(launch, registrar=None) as keeper, AsyncClient(keeper.address) as client:
        answers, inferences, executions = await counted_calls(client, [coffee] * 16)
    assert all(isinstance(answer, InferResult) for answer in answers)
    assert inferences == executions == 16
