"""The 3D box of a product as a photo shows it: fitted to noisy points, with its visible faces.

Corners come in the order of MediaPipe Objectron: corner 4 * x + 2 * y + z, where x, y and z are 0
or 1 along the box's own right-handed axes and y is the one that stands upright. So bit 2 of a
corner's number is its x, bit 1 its y and bit 0 its z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from aiflow_sdk.errors import RefusedError

Array = npt.NDArray[np.float64]
Face = tuple[int, int]  # axis (0 = x, 1 = y, 2 = z) and side (0 or 1)

X, Y, Z = 0, 1, 2
_BIT = (4, 2, 1)

# Centre and corners of the unit box.
_UNIT = np.array(
    [(0, 0, 0), *((x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5))]
)
# How strongly perspective is held back: noise in the points must not become a fish eye.
_PERSPECTIVE_RIDGE = 0.02
# Points further than this from any box, as a share of their spread, are no box.
_MAX_RESIDUAL = 0.2
# A face thinner than this share of the outline is seen edge on and does not count as visible.
_EDGE_ON = 0.004
# How much a box may be stretched to meet the detector's rectangle before the two contradict.
_MAX_STRETCH = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def meets(self, other: Rectangle) -> Rectangle:
        """What both have in common; of no or negative size where that is nothing."""
        return Rectangle(
            left=max(self.left, other.left),
            top=max(self.top, other.top),
            right=min(self.right, other.right),
            bottom=min(self.bottom, other.bottom),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One of the twelve edges.

    Attributes:
        axis: X, Y or Z.
        start, end: its corners' numbers.
        faces: the two faces that meet in it.
    """

    axis: int
    start: int
    end: int
    faces: tuple[Face, Face]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuboid:
    """A projected box: 8 x 2 corners in pixels, in Objectron order."""

    corners: Array

    @property
    def bounds(self) -> Rectangle:
        (left, top), (right, bottom) = self.corners.min(axis=0), self.corners.max(axis=0)
        return Rectangle(left=left, top=top, right=right, bottom=bottom)

    @property
    def center(self) -> Array:
        return np.asarray(self.corners.mean(axis=0))

    @property
    def outline(self) -> Array:
        """The convex outline, n x 2."""
        hull = cv2.convexHull(self.corners.astype(np.float32))
        return np.asarray(hull.reshape(-1, 2), dtype=np.float64)

    def direction(self, axis: int) -> Array:
        """The mean of the four edges along `axis`, from 0 to 1."""
        return np.asarray(
            np.mean([self.corners[e.end] - self.corners[e.start] for e in edges(axis)], axis=0)
        )


def edges(axis: int) -> list[Edge]:
    """The four edges along `axis`."""
    one, other = (a for a in (X, Y, Z) if a != axis)
    found = []
    for side_one in (0, 1):
        for side_other in (0, 1):
            start = side_one * _BIT[one] + side_other * _BIT[other]
            found.append(
                Edge(
                    axis=axis,
                    start=start,
                    end=start | _BIT[axis],
                    faces=((one, side_one), (other, side_other)),
                )
            )
    return found


def fit(points: Sequence[tuple[float, float]]) -> Cuboid:
    """The box in perspective nearest to nine noisy points (centre, then corners), least squares.

    The model is (A X + b) / (1 + c . X) for the corners X of a unit box. It is solved as a linear
    system, reweighted until the weights are the true distances, with a ridge on c alone.

    Raises:
        RefusedError: BAD_GEOMETRY, where the points do not span a box.
    """
    seen = np.asarray(points, dtype=np.float64)
    if seen.shape != (9, 2) or not np.isfinite(seen).all():
        raise _refused("nine points with finite coordinates are needed")
    middle = seen.mean(axis=0)
    spread = float(np.sqrt(((seen - middle) ** 2).sum(axis=1).mean()))
    if spread < 1.0 or np.linalg.svd(seen - middle, compute_uv=False)[1] < 0.05 * spread:
        raise _refused("the points lie on one spot or one line")
    unit = (seen - middle) / spread
    projection = _solve(unit, perspective=True)
    if projection is None or _depths(projection).min() < 0.35:
        projection = _solve(unit, perspective=False)
    if projection is None:
        raise _refused("the points do not determine a box")
    fitted = _project(projection)
    residual = float(np.sqrt(((fitted - unit) ** 2).sum(axis=1).mean()))
    if residual > _MAX_RESIDUAL:
        raise _refused(
            f"the points are {residual:.0%} of their spread away from any box; "
            "are they in Objectron order?"
        )
    return Cuboid(corners=fitted[1:] * spread + middle)


def fit_into(cuboid: Cuboid, target: Rectangle) -> Cuboid:
    """The box stretched along the picture's sides until its outline touches all of `target`'s.

    Parallels stay parallel and the perspective stays what it was.

    Raises:
        RefusedError: BAD_GEOMETRY, where the rectangle is so different that it must be of
            another thing.
    """
    bounds = cuboid.bounds
    stretch = np.array(
        [target.width / max(bounds.width, 1e-9), target.height / max(bounds.height, 1e-9)]
    )
    if (stretch > _MAX_STRETCH).any() or (stretch < 1 / _MAX_STRETCH).any():
        raise _refused(
            "the product's rectangle and the box of the points differ more than "
            f"{_MAX_STRETCH:.0f} times in size"
        )
    corner = np.array([bounds.left, bounds.top])
    return Cuboid(corners=(cuboid.corners - corner) * stretch + (target.left, target.top))


def visible_faces(cuboid: Cuboid) -> frozenset[Face]:
    """The faces that are turned towards the camera: one to three.

    Seen from outside, a face's corners go round counterclockwise; where they appear clockwise the
    face is seen from behind.
    """
    area = float(cv2.contourArea(cuboid.outline.astype(np.float32)))
    turned = {
        (axis, side): -_signed_area(cuboid.corners[_face_corners(axis, side)])
        for axis in (X, Y, Z)
        for side in (0, 1)
    }
    return frozenset(face for face, size in turned.items() if size > _EDGE_ON * area)


def _face_corners(axis: int, side: int) -> list[int]:
    """A face's corners, counterclockwise as seen from outside."""
    one, other = _BIT[(axis + 1) % 3], _BIT[(axis + 2) % 3]
    base = side * _BIT[axis]
    around = [base, base | one, base | one | other, base | other]
    return around if side else around[::-1]


def _signed_area(polygon: Array) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _solve(seen: Array, *, perspective: bool) -> Array | None:
    """The 3 x 4 projection with last entry 1; None where the points do not determine one."""
    columns = 11 if perspective else 8
    homogeneous = np.hstack([_UNIT, np.ones((9, 1))])
    system = np.zeros((18, columns))
    system[0::2, 0:4] = system[1::2, 4:8] = homogeneous
    if perspective:
        system[0::2, 8:] = -seen[:, :1] * _UNIT
        system[1::2, 8:] = -seen[:, 1:] * _UNIT
    ridge = np.zeros((3, columns))
    if perspective:
        ridge[:, 8:] = np.sqrt(_PERSPECTIVE_RIDGE) * np.eye(3)
    projection = np.zeros((3, 4))
    projection[2, 3] = 1
    for _ in range(6 if perspective else 1):
        depth = _depths(projection)
        if depth.min() < 0.1:
            return None
        weight = np.repeat(1 / depth, 2)
        left = np.vstack([system * weight[:, None], ridge])
        right = np.concatenate([seen.reshape(-1) * weight, np.zeros(3)])
        found, _, rank, _ = np.linalg.lstsq(left, right, rcond=None)
        if rank < columns:
            return None
        projection[0], projection[1] = found[0:4], found[4:8]
        if perspective:
            projection[2, :3] = found[8:]
    return projection


def _depths(projection: Array) -> Array:
    return np.asarray(_UNIT @ projection[2, :3] + 1)


def _project(projection: Array) -> Array:
    flat = _UNIT @ projection[:2, :3].T + projection[:2, 3]
    return np.asarray(flat / _depths(projection)[:, None])


def _refused(problem: str) -> RefusedError:
    return RefusedError(f"keypoints: {problem}", reason="BAD_GEOMETRY")
