"""aiflow.geometry.v1 over a real connection, and its SVG drawn by the imaging server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from unit.geometry.poses import Pose, keypoints
from unit.imaging import samples

from aiflow.geometry.v1 import geometry_pb2 as pb
from aiflow.geometry.v1 import geometry_pb2_grpc
from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import errors, status
from aiflow_servers.geometry.server import SERVER
from aiflow_servers.imaging.server import SERVER as IMAGING
from aiflow_servers.runtime.server import serving

_POINTS = [pb.Point(x=x, y=y) for x, y in keypoints(Pose())]
_SIZE = {"width_cm": 30.0, "height_cm": 20.0, "depth_cm": 12.5}


@asynccontextmanager
async def connected() -> AsyncIterator[geometry_pb2_grpc.GeometryServiceAsyncStub]:
    async with (
        serving(SERVER, workers=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield geometry_pb2_grpc.GeometryServiceStub(channel)


def request(size: dict[str, float] | None = None, **changes: Any) -> pb.AnnotateDimensionsRequest:
    values = {"image_width": 600, "image_height": 400, "keypoints": _POINTS, **changes}
    return pb.AnnotateDimensionsRequest(size=pb.Size(**{**_SIZE, **(size or {})}), **values)


async def call(
    stub: geometry_pb2_grpc.GeometryServiceAsyncStub, asked: pb.AnnotateDimensionsRequest
) -> pb.AnnotateDimensionsResponse:
    try:
        return await stub.AnnotateDimensions(asked, timeout=30)
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from None


async def test_width_height_and_depth_come_in_this_order_with_their_lengths() -> None:
    async with connected() as stub:
        answer = await call(stub, request())
    assert [axis.dimension for axis in answer.axes] == [1, 2, 3]
    assert [axis.label for axis in answer.axes] == ["30 cm", "20 cm", "12.5 cm"]
    assert [axis.length_cm for axis in answer.axes] == [30, 20, 12.5]
    for axis in answer.axes:
        edge = np.array([axis.edge_end.x - axis.edge_start.x, axis.edge_end.y - axis.edge_start.y])
        line = np.array([axis.line_end.x - axis.line_start.x, axis.line_end.y - axis.line_start.y])
        assert np.allclose(edge, line, atol=1e-3)
        assert axis.label in answer.svg


@pytest.mark.parametrize(
    ("unit", "labels"),
    [
        (pb.UNIT_UNSPECIFIED, ["30 cm", "20 cm", "12.5 cm"]),
        (pb.UNIT_MILLIMETRE, ["300 mm", "200 mm", "125 mm"]),
        (pb.UNIT_INCH, ["11.8 in", "7.9 in", "4.9 in"]),
    ],
)
async def test_units(unit: pb.Unit, labels: list[str]) -> None:
    async with connected() as stub:
        answer = await call(stub, request(unit=unit))
    assert [axis.label for axis in answer.axes] == labels


async def test_the_whole_range_is_served() -> None:
    async with connected() as stub:
        for asked in (
            request({"width_cm": 0.1, "height_cm": 10_000}),
            request(image_width=16_384, image_height=16_384),
            request(color="#00FF00"),
            request(product=pb.Rectangle(left=-20, top=50, right=500, bottom=450)),
        ):
            assert len((await call(stub, asked)).axes) == 3
        small = [pb.Point(x=p.x / 30, y=p.y / 30) for p in _POINTS]
        tiny = request(image_width=20, image_height=16, keypoints=small)
        assert len((await call(stub, tiny)).axes) == 3


_FAR = [*_POINTS[:8], pb.Point(x=1e30, y=0)]
_NAN = [pb.Point(x=float("nan")), *_POINTS[1:]]

REFUSED: list[tuple[str, pb.AnnotateDimensionsRequest, set[str]]] = [
    (
        "nothing given",
        pb.AnnotateDimensionsRequest(),
        {
            *("image_width", "image_height", "keypoints"),
            *("size.width_cm", "size.height_cm", "size.depth_cm"),
        },
    ),
    ("photo too narrow", request(image_width=15), {"image_width"}),
    ("photo too high", request(image_height=16_385), {"image_height"}),
    ("eight points", request(keypoints=_POINTS[:8]), {"keypoints"}),
    ("ten points", request(keypoints=[*_POINTS, _POINTS[0]]), {"keypoints"}),
    ("not a number", request(keypoints=_NAN), {"keypoints[0].x"}),
    ("a point far away", request(keypoints=_FAR), {"keypoints[8].x"}),
    ("too small", request({"width_cm": 0.09}), {"size.width_cm"}),
    ("too large", request({"depth_cm": 10_001}), {"size.depth_cm"}),
    ("infinite", request({"height_cm": float("inf")}), {"size.height_cm"}),
    ("turned round", request(product=pb.Rectangle(left=9, right=5, bottom=5)), {"product"}),
    ("empty product", request(product=pb.Rectangle()), {"product"}),
    ("unknown unit", request(unit=7), {"unit"}),
    ("colour by name", request(color="red"), {"color"}),
    ("colour that breaks out", request(color='#fff" x="'), {"color"}),
]


async def test_everything_else_is_refused_by_field() -> None:
    async with connected() as stub:
        for row, asked, fields in REFUSED:
            with pytest.raises(errors.BadInputError) as refused:
                await call(stub, asked)
            assert set(refused.value.violations) == fields, row


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([pb.Point(x=5, y=5)] * 9, id="one spot"),
        pytest.param([pb.Point(x=i, y=i) for i in range(9)], id="one line"),
        pytest.param([pb.Point(x=p.x + 9000, y=p.y) for p in _POINTS], id="outside the photo"),
    ],
)
async def test_points_that_span_no_box_are_a_failed_precondition(points: list[pb.Point]) -> None:
    async with connected() as stub:
        with pytest.raises(errors.RefusedError) as refused:
            await call(stub, request(keypoints=points))
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "BAD_GEOMETRY")


async def test_many_calls_at_once() -> None:
    async with connected() as stub:
        asked = [request({"width_cm": n + 1.0}) for n in range(20)]
        answers = await asyncio.gather(*(call(stub, one) for one in asked))
    assert [answer.axes[0].label for answer in answers] == [f"{n + 1} cm" for n in range(20)]


async def test_the_imaging_server_draws_what_the_geometry_server_plans() -> None:
    photo = samples.encoded(samples.photo((600, 400)))
    async with connected() as stub:
        answer = await call(stub, request(color="#0000ff"))
    async with (
        serving(IMAGING, workers=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        drawn = await imaging_pb2_grpc.ImagingServiceStub(channel).RenderOverlay(
            imaging_pb2.RenderOverlayRequest(
                photo=imaging_pb2.Image(data=photo), svg=answer.svg, min_long_side_px=1200
            ),
            timeout=30,
        )
    pixels = samples.decoded(drawn.image.data).astype(int)
    for axis in answer.axes:
        x, y = round(2 * axis.line_start.x), round(2 * axis.line_start.y)
        near = pixels[y - 6 : y + 7, x - 6 : x + 7]
        assert ((near[..., 2] > 180) & (near[..., 0] < 80)).any()
        label = pixels[round(2 * axis.label_at.y) - 12 : round(2 * axis.label_at.y) + 12]
        label = label[:, round(2 * axis.label_at.x) - 20 : round(2 * axis.label_at.x) + 20]
        assert (label.min(axis=2) > 230).any()
        assert ((label[..., 2] > 180) & (label[..., 0] < 80)).any()
