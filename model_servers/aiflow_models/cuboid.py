"""Finds the 3D box of a product in one photo: Objectron's networks, one a kind of product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from aiflow_models.errors import BadInputError
from aiflow_models.pictures import Picture, check_box, decode
from aiflow_models.session import Floats, Network

SIDE = 224
ENLARGE = 1.5  # of the 2D box; what the networks were trained on

KINDS = ("cup", "chair", "sneakers", "camera")
_KIND_OF_LABEL = {
    **{kind: kind for kind in KINDS},
    "mug": "cup",
    "coffee cup": "cup",
    "sneaker": "sneakers",
    "shoe": "sneakers",
    "shoes": "sneakers",
    "footwear": "sneakers",
    "boot": "sneakers",
    "high heels": "sneakers",
}


def kind_of(label: str) -> str:
    """Which network knows products of this label.

    Raises:
        BadInputError: none does.
    """
    kind = _KIND_OF_LABEL.get(label.strip().lower())
    if kind is None:
        raise BadInputError(
            f"no 3D box for label {label!r}; supported are {', '.join(sorted(_KIND_OF_LABEL))}"
        )
    return kind


def square_of(picture: Picture, box: Floats) -> tuple[float, float, float]:
    """Left, top and side, in pixels, of the square that is looked at; it may reach outside."""
    left, top, right, bottom = check_box(box, picture)
    side = max(right - left, bottom - top) * ENLARGE
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def prepare(picture: Picture, square: tuple[float, float, float]) -> Floats:
    """3 x 224 x 224 in [0, 1]; what lies outside the picture is its border, repeated."""
    left, top, side = square
    scale = SIDE / side
    # A large crop is first halved in place of skipping pixels, which would alias.
    while scale < 0.5:
        picture = np.asarray(cv2.pyrDown(picture), np.uint8)
        left, top, scale = left / 2, top / 2, scale * 2
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    part = cv2.warpAffine(
        picture, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(part.transpose(2, 0, 1), np.float32) / np.float32(255)


def to_picture(keypoints: Floats, square: tuple[float, float, float]) -> Floats:
    """Network output of 18 to 9 x 2 pixels of the picture."""
    left, top, side = square
    points = keypoints.reshape(9, 2) / SIDE * side + np.array([left, top], np.float32)
    return points.astype(np.float32)


class Cuboid:
    def __init__(self, *, gpu: int | None = None, threads: int | None = None) -> None:
        self._networks = {
            kind: Network(f"cuboid-{kind}.onnx", gpu=gpu, threads=threads) for kind in KINDS
        }

    def find(self, prepared: Sequence[Floats], kinds: Sequence[str]) -> list[tuple[Floats, float]]:
        """Keypoints (18, in pixels of the 224x224 crop) and score; one call a kind of product."""
        found: list[tuple[Floats, float]] = [(np.zeros(18, np.float32), 0.0)] * len(prepared)
        for kind in sorted(set(kinds)):
            places = [index for index, other in enumerate(kinds) if other == kind]
            points, scores = self._networks[kind].run(np.stack([prepared[i] for i in places]))
            for place, point, score in zip(places, points, scores, strict=True):
                found[place] = (point, float(score[0]))
        return found


class CuboidModel:
    """`Cuboid` as Triton's rows: see triton_repo/cuboid/config.pbtxt."""

    inputs = ("image", "box", "label")

    def __init__(self, *, gpu: int | None, threads: int) -> None:
        self._cuboid = Cuboid(gpu=gpu, threads=threads)

    def prepare(self, row: Mapping[str, Any]) -> tuple[Floats, str, tuple[float, float, float]]:
        kind = kind_of(row["label"][0].decode("utf-8", "replace"))
        picture = decode(row["image"][0])
        square = square_of(picture, row["box"])
        return prepare(picture, square), kind, square

    def infer(
        self, rows: Sequence[tuple[Floats, str, tuple[float, float, float]]]
    ) -> list[dict[str, Any]]:
        found = self._cuboid.find([row[0] for row in rows], [row[1] for row in rows])
        return [
            {"keypoints": to_picture(points, row[2]), "score": np.array([score], np.float32)}
            for (points, score), row in zip(found, rows, strict=True)
        ]
