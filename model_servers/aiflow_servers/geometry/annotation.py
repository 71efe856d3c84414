"""From nine noisy points to dimension lines: the whole of it, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiflow_servers.geometry import cuboid, dimensions, svg
from aiflow_servers.geometry.cuboid import Rectangle
from aiflow_servers.geometry.measures import Dimension, Measure, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Width, height and depth, and the SVG that draws them."""

    measures: tuple[Measure, Measure, Measure]
    svg: str


def annotate(
    keypoints: Sequence[tuple[float, float]],
    *,
    image_size: tuple[int, int],
    lengths_cm: Mapping[Dimension, float],
    product: Rectangle | None,
    unit: Unit,
    color: str,
) -> Annotation:
    """Measures a product in a photo.

    Args:
        keypoints: the centre and the eight corners of its box, in pixels, in Objectron order.
        image_size: width and height of the photo in pixels.
        lengths_cm: its real size.
        product: where a detector saw it; the box is fitted to that.
        unit: of the labels.
        color: of lines and numbers, "#rrggbb".

    Raises:
        RefusedError: BAD_GEOMETRY, where the points do not span a box that can be measured.
    """
    box = cuboid.fit(keypoints)
    if product is not None:
        box = cuboid.fit_into(box, product)
    plan = dimensions.plan(box, image_size=image_size, lengths_cm=lengths_cm, unit=unit)
    return Annotation(
        measures=plan.measures, svg=svg.render(plan, image_size=image_size, color=color)
    )
