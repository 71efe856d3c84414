"""Boxes in front of a camera, projected as a model would see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A box on a table.

    Attributes:
        yaw, pitch, roll: degrees; pitch is how far the camera looks down.
        size: along x, y, z, of any unit.
        distance: of the camera, in box diagonals; small is strong perspective.
        center: in the photo, as shares of its width and height.
        extent: diagonal of the projected box as a share of the photo's shorter side.
        photo: width and height in pixels.
    """

    yaw: float = 35.0
    pitch: float = 25.0
    roll: float = 0.0
    size: tuple[float, float, float] = (3.0, 2.0, 2.0)
    distance: float = 4.0
    center: tuple[float, float] = (0.5, 0.5)
    extent: float = 0.6
    photo: tuple[int, int] = (600, 400)


def keypoints(pose: Pose, noise_px: float = 0.0, seed: int = 7) -> list[tuple[float, float]]:
    """Centre and corners in pixels, x slowest, then y, then z."""
    axes = [(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    box = np.array([(0, 0, 0), *axes]) * pose.size
    turned = box @ _rotation(pose).T
    depth = pose.distance * np.linalg.norm(pose.size) - turned[:, 2]
    seen = np.column_stack([turned[:, 0], -turned[:, 1]]) / depth[:, None]
    spread = np.linalg.norm(seen.max(axis=0) - seen.min(axis=0))
    scaled = seen * (pose.extent * min(pose.photo) / spread)
    moved = scaled - scaled[0] + np.array(pose.center) * pose.photo
    moved += noise_px * np.random.default_rng(seed).standard_normal(moved.shape)
    return [(float(x), float(y)) for x, y in moved]


def facing(pose: Pose) -> frozenset[tuple[int, int]]:
    """The faces (axis, side) that the camera really sees."""
    rotation = _rotation(pose)
    camera = rotation.T @ np.array([0, 0, pose.distance * np.linalg.norm(pose.size)])
    half = np.array(pose.size) / 2
    return frozenset(
        (axis, side)
        for axis in range(3)
        for side in (0, 1)
        if (camera[axis] if side else -camera[axis]) > half[axis]
    )


def _rotation(pose: Pose) -> Array:
    """From the box's axes to the camera's: x right, y up, z towards it."""
    yaw, pitch, roll = np.radians([pose.yaw, pose.pitch, pose.roll])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return np.asarray(lean @ tilt @ turn)
