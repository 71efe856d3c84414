"""aiflow.geometry.v1 over gRPC: checks requests, has them computed in worker processes, answers."""

from __future__ import annotations

import re

import cv2
import grpc

from aiflow.geometry.v1 import geometry_pb2, geometry_pb2_grpc
from aiflow_servers.geometry.annotation import annotate
from aiflow_servers.geometry.cuboid import Array, Rectangle
from aiflow_servers.geometry.measures import Dimension, Measure, Unit
from aiflow_servers.imaging import text
from aiflow_servers.imaging.violations import Violations
from aiflow_servers.runtime.server import Server
from aiflow_servers.runtime.workers import Workers

_UNITS: dict[int, Unit] = {
    geometry_pb2.UNIT_UNSPECIFIED: Unit.CENTIMETRE,
    geometry_pb2.UNIT_CENTIMETRE: Unit.CENTIMETRE,
    geometry_pb2.UNIT_MILLIMETRE: Unit.MILLIMETRE,
    geometry_pb2.UNIT_INCH: Unit.INCH,
}
_DIMENSIONS = {
    Dimension.WIDTH: geometry_pb2.DIMENSION_WIDTH,
    Dimension.HEIGHT: geometry_pb2.DIMENSION_HEIGHT,
    Dimension.DEPTH: geometry_pb2.DIMENSION_DEPTH,
}
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_DEFAULT_COLOR = "#e4002b"
# How far a point may lie from the origin: beyond is an error of the caller, not a view.
_FAR_PX = 100_000

_Context = grpc.aio.ServicerContext[
    geometry_pb2.AnnotateDimensionsRequest, geometry_pb2.AnnotateDimensionsResponse
]


class GeometryServicer(geometry_pb2_grpc.GeometryServiceServicer):
    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def AnnotateDimensions(
        self, request: geometry_pb2.AnnotateDimensionsRequest, _context: _Context
    ) -> geometry_pb2.AnnotateDimensionsResponse:
        _check(request)
        lengths_cm = {
            Dimension.WIDTH: request.size.width_cm,
            Dimension.HEIGHT: request.size.height_cm,
            Dimension.DEPTH: request.size.depth_cm,
        }
        annotation = await self._workers.run(
            annotate,
            [(point.x, point.y) for point in request.keypoints],
            image_size=(request.image_width, request.image_height),
            lengths_cm=lengths_cm,
            product=_rectangle(request.product) if request.HasField("product") else None,
            unit=_UNITS[request.unit],
            color=request.color or _DEFAULT_COLOR,
        )
        return geometry_pb2.AnnotateDimensionsResponse(
            axes=[_axis(m, lengths_cm[m.dimension]) for m in annotation.measures],
            svg=annotation.svg,
        )


def _check(request: geometry_pb2.AnnotateDimensionsRequest) -> None:
    found = Violations()
    found.check_range("image_width", request.image_width, 16, 16384)
    found.check_range("image_height", request.image_height, 16, 16384)
    if len(request.keypoints) != 9:
        found.add(
            "keypoints", f"must be 9, the centre and eight corners, not {len(request.keypoints)}"
        )
    for number, point in enumerate(request.keypoints[:9]):
        found.check_range(f"keypoints[{number}].x", point.x, -_FAR_PX, _FAR_PX)
        found.check_range(f"keypoints[{number}].y", point.y, -_FAR_PX, _FAR_PX)
    for name in ("width_cm", "height_cm", "depth_cm"):
        found.check_range(f"size.{name}", getattr(request.size, name), 0.1, 10_000)
    if request.HasField("product"):
        box = request.product
        for name in ("left", "top", "right", "bottom"):
            found.check_range(f"product.{name}", getattr(box, name), -_FAR_PX, _FAR_PX)
        if not (box.right - box.left >= 1 and box.bottom - box.top >= 1):
            found.add(
                "product", "must be at least one pixel wide and high: left < right, top < bottom"
            )
    if request.unit not in _UNITS:
        found.add("unit", f"{request.unit} is not a known Unit")
    if request.color and not _COLOR.fullmatch(request.color):
        found.add("color", 'must be a colour such as "#e4002b"')
    found.raise_any()


def _rectangle(box: geometry_pb2.Rectangle) -> Rectangle:
    return Rectangle(left=box.left, top=box.top, right=box.right, bottom=box.bottom)


def _axis(measure: Measure, length_cm: float) -> geometry_pb2.Axis:
    box = measure.label_box
    return geometry_pb2.Axis(
        dimension=_DIMENSIONS[measure.dimension],
        edge_start=_point(measure.edge[0]),
        edge_end=_point(measure.edge[1]),
        line_start=_point(measure.line[0]),
        line_end=_point(measure.line[1]),
        label_at=geometry_pb2.Point(x=(box.left + box.right) / 2, y=(box.top + box.bottom) / 2),
        label=measure.label,
        length_cm=length_cm,
    )


def _point(at: Array) -> geometry_pb2.Point:
    return geometry_pb2.Point(x=float(at[0]), y=float(at[1]))


def _add(server: grpc.aio.Server, workers: Workers) -> None:
    geometry_pb2_grpc.add_GeometryServiceServicer_to_server(GeometryServicer(workers), server)


def initialize() -> None:
    """Makes a worker process ready: one thread, because there is one worker a core."""
    cv2.setNumThreads(1)
    text.load()


SERVER = Server(
    name="geometry",
    services=("aiflow.geometry.v1.GeometryService",),
    add=_add,
    initialize=initialize,
)
