"""aiflow.imaging.v1 over gRPC: checks requests, has them computed in worker processes, answers."""

from __future__ import annotations

import cv2
import grpc

from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_servers.imaging import codec, text
from aiflow_servers.imaging.codec import Format, Picture
from aiflow_servers.imaging.contact_sheet import MAX_TILES, Tile, compose_contact_sheet
from aiflow_servers.imaging.main_image import Layout, compose_main_image
from aiflow_servers.imaging.overlay import MAX_LONG_SIDE_PX, render_overlay
from aiflow_servers.imaging.violations import Violations
from aiflow_servers.runtime.server import Server
from aiflow_servers.runtime.workers import Workers

_FORMATS: dict[int, Format] = {
    imaging_pb2.IMAGE_FORMAT_UNSPECIFIED: Format.PNG,
    imaging_pb2.IMAGE_FORMAT_PNG: Format.PNG,
    imaging_pb2.IMAGE_FORMAT_JPEG: Format.JPEG,
    imaging_pb2.IMAGE_FORMAT_WEBP: Format.WEBP,
}

_MainImageContext = grpc.aio.ServicerContext[
    imaging_pb2.ComposeMainImageRequest, imaging_pb2.ComposeMainImageResponse
]
_OverlayContext = grpc.aio.ServicerContext[
    imaging_pb2.RenderOverlayRequest, imaging_pb2.RenderOverlayResponse
]
_SheetContext = grpc.aio.ServicerContext[
    imaging_pb2.ComposeContactSheetRequest, imaging_pb2.ComposeContactSheetResponse
]


class ImagingServicer(imaging_pb2_grpc.ImagingServiceServicer):
    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def ComposeMainImage(
        self, request: imaging_pb2.ComposeMainImageRequest, _context: _MainImageContext
    ) -> imaging_pb2.ComposeMainImageResponse:
        layout = _layout(request)
        composed = await self._workers.run(
            compose_main_image, request.photo.data, request.mask.data, layout
        )
        left, top, right, bottom = composed.product
        return imaging_pb2.ComposeMainImageResponse(
            image=_image(composed.picture),
            product=imaging_pb2.Rectangle(left=left, top=top, right=right, bottom=bottom),
        )

    async def RenderOverlay(
        self, request: imaging_pb2.RenderOverlayRequest, _context: _OverlayContext
    ) -> imaging_pb2.RenderOverlayResponse:
        found = Violations()
        _check_image(found, "photo", request.photo)
        if not request.svg:
            found.add("svg", "is empty; send an SVG document")
        found.check_range("min_long_side_px", request.min_long_side_px, 0, MAX_LONG_SIDE_PX)
        form = _format(found, request.format)
        found.raise_any()
        picture = await self._workers.run(
            render_overlay,
            request.photo.data,
            request.svg,
            min_long_side_px=request.min_long_side_px,
            form=form,
        )
        return imaging_pb2.RenderOverlayResponse(image=_image(picture))

    async def ComposeContactSheet(
        self, request: imaging_pb2.ComposeContactSheetRequest, _context: _SheetContext
    ) -> imaging_pb2.ComposeContactSheetResponse:
        found = Violations()
        if not 1 <= len(request.tiles) <= MAX_TILES:
            found.add("tiles", f"must be 1 to {MAX_TILES}, not {len(request.tiles)}")
        for number, tile in enumerate(request.tiles[:MAX_TILES]):
            _check_image(found, f"tiles[{number}].image", tile.image)
            found.check_length(f"tiles[{number}].caption", tile.caption, 80)
        found.check_length("title", request.title, 120)
        found.check_range("columns", request.columns, 0, 8)
        if request.tile_px:
            found.check_range("tile_px", request.tile_px, 64, 1024)
        form = _format(found, request.format)
        found.raise_any()
        picture = await self._workers.run(
            compose_contact_sheet,
            [Tile(image=tile.image.data, caption=tile.caption) for tile in request.tiles],
            title=request.title,
            columns=request.columns,
            tile_px=request.tile_px or 512,
            form=form,
        )
        return imaging_pb2.ComposeContactSheetResponse(image=_image(picture))


def _layout(request: imaging_pb2.ComposeMainImageRequest) -> Layout:
    found = Violations()
    _check_image(found, "photo", request.photo)
    _check_image(found, "mask", request.mask)
    found.check_length("title", request.title, 120)
    if request.canvas_px:
        found.check_range("canvas_px", request.canvas_px, 256, 4096)
    margin = request.margin if request.HasField("margin") else 0.08
    found.check_range("margin", margin, 0.02, 0.3)
    feather_px = request.feather_px if request.HasField("feather_px") else 2.0
    found.check_range("feather_px", feather_px, 0, 32)
    background = codec.parse_color(request.background or "#ffffff")
    if background is None:
        found.add("background", 'must be a colour such as "#ffffff"')
    form = _format(found, request.format)
    found.raise_any()
    return Layout(
        title=request.title,
        canvas_px=request.canvas_px or 2000,
        margin=margin,
        feather_px=feather_px,
        shadow=request.shadow if request.HasField("shadow") else True,
        background=background or (255, 255, 255),
        format=form,
    )


def _check_image(found: Violations, field: str, image: imaging_pb2.Image) -> None:
    if not image.data:
        found.add(field, "is missing; send the bytes of a PNG, JPEG or WebP file")


def _format(found: Violations, value: int) -> Format:
    form = _FORMATS.get(value)
    if form is None:
        found.add("format", f"{value} is not a known ImageFormat")
    return form or Format.PNG


def _image(picture: Picture) -> imaging_pb2.Image:
    return imaging_pb2.Image(
        data=picture.data,
        media_type=picture.media_type,
        width=picture.width,
        height=picture.height,
    )


def _add(server: grpc.aio.Server, workers: Workers) -> None:
    imaging_pb2_grpc.add_ImagingServiceServicer_to_server(ImagingServicer(workers), server)


def initialize() -> None:
    """Makes a worker process ready: one thread, because there is one worker a core."""
    cv2.setNumThreads(1)
    text.load()


SERVER = Server(
    name="imaging",
    services=("aiflow.imaging.v1.ImagingService",),
    add=_add,
    initialize=initialize,
)
