"""The two product-image flows, each a few calls through the router."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow.geometry.v1 import geometry_pb2, geometry_pb2_grpc
from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import Client, InferResult, Reply

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Report = Callable[["Step"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of a flow.

    Attributes:
        name: what was done.
        served_by: model or backend, and the endpoint that answered.
        elapsed_ms: as the caller saw it, router included.
    """

    name: str
    served_by: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the detector is surest of.

    Attributes:
        box: where it is in the photo.
        label: what it is, such as "cup".
        image_size: width and height of the photo in pixels.
    """

    box: Box
    label: str
    image_size: tuple[int, int]


class NoProductFoundError(Exception):
    """Nothing in the photo looks like a product."""


def detect(client: Client, photo: bytes, *, report: Report) -> Product:
    found = client.infer("detector", {"image": photo})
    report(_step("find the product", found))
    if found["count"].item() == 0:
        raise NoProductFoundError(
            "the detector found no product in this photo; use one where it is larger or clearer"
        )
    left, top, right, bottom = found["boxes"][0, 0].tolist()
    width, height = found["image_size"][0].tolist()
    return Product(
        box=(left, top, right, bottom),
        label=found["labels"][0, 0].decode(),
        image_size=(width, height),
    )


def main_image(client: Client, photo: bytes, *, title: str, report: Report) -> bytes:
    """Photo to finished white main image: detector, cutout, imaging.

    Args:
        client: where the router is.
        photo: encoded JPEG, PNG or WebP.
        title: one or two lines under the product; empty for none.
        report: called with each step when it is done.

    Returns:
        A JPEG of 2000x2000 pixels.

    Raises:
        NoProductFoundError: nothing in the photo looks like a product.
        AiflowError: a call failed.
    """
    product = detect(client, photo, report=report)
    cut = client.infer("cutout", {"image": photo, "box": _tensor(product.box)})
    report(_step("cut it out", cut))
    imaging = client.stub(imaging_pb2_grpc.ImagingServiceStub)
    composed = client.call(
        imaging.ComposeMainImage,
        imaging_pb2.ComposeMainImageRequest(
            photo=imaging_pb2.Image(data=photo),
            mask=imaging_pb2.Image(data=cut["mask"].item()),
            title=title,
            format=imaging_pb2.IMAGE_FORMAT_JPEG,
        ),
    )
    report(_step("compose the main image", composed))
    return composed.message.image.data


def dimensions(
    client: Client, photo: bytes, *, size: geometry_pb2.Size, report: Report
) -> tuple[bytes, list[geometry_pb2.Axis]]:
    """Photo and real size to dimension lines over the photo: detector, cuboid, geometry, imaging.

    Args:
        client: where the router is.
        photo: encoded JPEG, PNG or WebP.
        size: the product's real size in centimetres.
        report: called with each step when it is done.

    Returns:
        The annotated JPEG, and the axes in pixels of the photo.

    Raises:
        NoProductFoundError: nothing in the photo looks like a product.
        AiflowError: a call failed.
    """
    product = detect(client, photo, report=report)
    cuboid = client.infer(
        "cuboid", {"image": photo, "box": _tensor(product.box), "label": product.label}
    )
    report(_step("find its 3D box", cuboid))
    left, top, right, bottom = product.box
    width, height = product.image_size
    geometry = client.stub(geometry_pb2_grpc.GeometryServiceStub)
    annotated = client.call(
        geometry.AnnotateDimensions,
        geometry_pb2.AnnotateDimensionsRequest(
            image_width=width,
            image_height=height,
            keypoints=[geometry_pb2.Point(x=x, y=y) for x, y in cuboid["keypoints"][0].tolist()],
            size=size,
            product=geometry_pb2.Rectangle(left=left, top=top, right=right, bottom=bottom),
        ),
    )
    report(_step("draw dimension lines", annotated))
    imaging = client.stub(imaging_pb2_grpc.ImagingServiceStub)
    rendered = client.call(
        imaging.RenderOverlay,
        imaging_pb2.RenderOverlayRequest(
            photo=imaging_pb2.Image(data=photo),
            svg=annotated.message.svg,
            format=imaging_pb2.IMAGE_FORMAT_JPEG,
            min_long_side_px=1600,
        ),
    )
    report(_step("render them over the photo", rendered))
    return rendered.message.image.data, list(annotated.message.axes)


def _tensor(box: Box) -> NDArray[np.float32]:
    return np.array([box], np.float32)


def _step(name: str, answer: InferResult | Reply[Any]) -> Step:
    return Step(name=name, served_by=answer.served_by, elapsed_ms=answer.elapsed_ms)
