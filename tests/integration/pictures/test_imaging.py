"""aiflow.imaging.v1 over a real connection: ranges, errors, many calls at once, cancellation."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from integration.runtime.poll import until
from PIL import Image
from unit.imaging import samples

from aiflow.imaging.v1 import imaging_pb2 as pb
from aiflow.imaging.v1 import imaging_pb2_grpc
from aiflow_sdk import errors, status
from aiflow_servers.imaging.server import SERVER
from aiflow_servers.runtime.server import Running, serving

_LIMIT = 64 * 1024 * 1024
_PHOTO = pb.Image(data=samples.encoded(samples.photo()))
_MASK = pb.Image(data=samples.encoded(samples.mask()))
_SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{samples.WIDTH}" height="{samples.HEIGHT}"/>'
)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[imaging_pb2_grpc.ImagingServiceAsyncStub, Running]]:
    options = [
        ("grpc.max_receive_message_length", _LIMIT),
        ("grpc.max_send_message_length", _LIMIT),
    ]
    async with (
        serving(SERVER, workers=2) as running,
        grpc.aio.insecure_channel(running.address, options=options) as channel,
    ):
        yield imaging_pb2_grpc.ImagingServiceStub(channel), running


def main_image(**changes: Any) -> pb.ComposeMainImageRequest:
    return pb.ComposeMainImageRequest(**{"photo": _PHOTO, "mask": _MASK, **changes})


def overlay(**changes: Any) -> pb.RenderOverlayRequest:
    return pb.RenderOverlayRequest(**{"photo": _PHOTO, "svg": _SVG, **changes})


def sheet(count: int = 1, caption: str = "", **changes: Any) -> pb.ComposeContactSheetRequest:
    tile = pb.ComposeContactSheetRequest.Tile(image=_PHOTO, caption=caption)
    return pb.ComposeContactSheetRequest(tiles=[tile] * count, **changes)


async def call(stub: imaging_pb2_grpc.ImagingServiceAsyncStub, request: Any) -> Any:
    try:
        if isinstance(request, pb.ComposeMainImageRequest):
            return await stub.ComposeMainImage(request, timeout=60)
        if isinstance(request, pb.RenderOverlayRequest):
            return await stub.RenderOverlay(request, timeout=60)
        return await stub.ComposeContactSheet(request, timeout=60)
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from None


ACCEPTED = [
    pytest.param(main_image(), (2000, 2000), id="main image, defaults"),
    pytest.param(main_image(canvas_px=256), (256, 256), id="smallest canvas"),
    pytest.param(main_image(canvas_px=4096, shadow=False), (4096, 4096), id="largest canvas"),
    pytest.param(main_image(canvas_px=300, margin=0.02), (300, 300), id="smallest margin"),
    pytest.param(main_image(canvas_px=300, margin=0.3), (300, 300), id="largest margin"),
    pytest.param(main_image(canvas_px=300, feather_px=0), (300, 300), id="no feather"),
    pytest.param(main_image(canvas_px=300, feather_px=32), (300, 300), id="largest feather"),
    pytest.param(main_image(canvas_px=600, title="a " * 60), (600, 600), id="longest title"),
    pytest.param(main_image(canvas_px=300, background="#AABBcc"), (300, 300), id="coloured"),
    pytest.param(overlay(), (120, 90), id="overlay, defaults"),
    pytest.param(overlay(min_long_side_px=8192, format=2), (8192, 6144), id="largest overlay"),
    pytest.param(sheet(), (634, 634), id="one tile"),
    pytest.param(sheet(64, tile_px=64, columns=8), (556, 556), id="64 tiles"),
    pytest.param(sheet(1, tile_px=1024), (1270, 1270), id="largest tile"),
    pytest.param(sheet(1, "x" * 80), (634, None), id="longest caption"),
]


@pytest.mark.parametrize(("request_", "size"), ACCEPTED)
async def test_the_whole_range_is_served(request_: Any, size: tuple[int, int | None]) -> None:
    async with connected() as (stub, _):
        image = (await call(stub, request_)).image
    assert image.width == size[0]
    assert size[1] in (None, image.height)
    assert Image.open(io.BytesIO(image.data)).size == (image.width, image.height)


REFUSED: list[tuple[str, Any, set[str]]] = [
    ("nothing given", pb.ComposeMainImageRequest(), {"photo", "mask"}),
    ("bomb", main_image(photo=pb.Image(data=samples.png_header(30_000, 30_000))), {"photo"}),
    ("a mask that is none", main_image(mask=pb.Image(data=b"no")), {"mask"}),
    ("title too long", main_image(title="x" * 121), {"title"}),
    ("canvas too small", main_image(canvas_px=255), {"canvas_px"}),
    ("canvas too large", main_image(canvas_px=4097), {"canvas_px"}),
    ("margin too small", main_image(margin=0.019), {"margin"}),
    ("margin too large", main_image(margin=0.31), {"margin"}),
    ("margin not a number", main_image(margin=float("nan")), {"margin"}),
    ("feather negative", main_image(feather_px=-0.1), {"feather_px"}),
    ("feather too large", main_image(feather_px=32.1), {"feather_px"}),
    ("colour by name", main_image(background="white"), {"background"}),
    ("unknown format", main_image(format=9), {"format"}),
    (
        "several at once",
        main_image(canvas_px=1, margin=1, title="x" * 121),
        {"canvas_px", "margin", "title"},
    ),
    ("no SVG", overlay(svg=""), {"svg"}),
    ("SVG too large", overlay(svg=" " * (2**20 + 1)), {"svg"}),
    ("overlay too large", overlay(min_long_side_px=8193), {"min_long_side_px"}),
    (
        "SVG that reads a file",
        overlay(svg=_SVG.replace("/>", '><image href="/etc/hostname"/></svg>')),
        {"svg"},
    ),
    ("no tiles", sheet(0), {"tiles"}),
    ("65 tiles", sheet(65), {"tiles"}),
    ("caption too long", sheet(1, "x" * 81), {"tiles[0].caption"}),
    ("heading too long", sheet(1, title="x" * 121), {"title"}),
    ("nine columns", sheet(1, columns=9), {"columns"}),
    ("tile too small", sheet(1, tile_px=63), {"tile_px"}),
    ("tile too large", sheet(1, tile_px=1025), {"tile_px"}),
]


async def test_everything_else_is_refused_by_field() -> None:
    async with connected() as (stub, _):
        for row, request, fields in REFUSED:
            with pytest.raises(errors.BadInputError) as refused:
                await call(stub, request)
            assert refused.value.reason == "BAD_INPUT", row
            assert set(refused.value.violations) == fields, row


async def test_the_corners_are_white_and_the_product_is_where_the_answer_says() -> None:
    async with connected() as (stub, _):
        answer = await call(stub, main_image(title="Red ellipse"))
    pixels = np.asarray(Image.open(io.BytesIO(answer.image.data)))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    box = answer.product
    middle = pixels[round((box.top + box.bottom) / 2), round((box.left + box.right) / 2)]
    assert np.abs(middle.astype(int) - (200, 20, 20)).max() <= 3


async def test_calls_at_the_same_time_do_not_mix() -> None:
    async with connected() as (stub, _):
        sizes = [256 + 16 * n for n in range(12)]
        answers = await asyncio.gather(*(call(stub, main_image(canvas_px=s)) for s in sizes))
    assert [answer.image.width for answer in answers] == sizes


async def test_a_cancelled_call_frees_its_worker() -> None:
    async with connected() as (stub, running):
        slow = [stub.RenderOverlay(overlay(min_long_side_px=8192)) for _ in range(2)]
        await until(lambda: running.workers.busy == 2)
        for pending in slow:
            pending.cancel()
        await until(lambda: running.workers.busy == 0)
        assert (await call(stub, main_image(canvas_px=256))).image.width == 256


async def test_a_deadline_ends_the_work() -> None:
    async with connected() as (stub, running):
        with pytest.raises(grpc.RpcError) as late:
            await stub.RenderOverlay(overlay(min_long_side_px=8192), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.workers.busy == 0)
