"""Finds products: SSD MobileNetV2 of Objectron, 23 classes, 300x300 RGB in [-1, 1].

Anchors and box coding are those of TensorFlow's object detection API (ssd_anchor_generator and
faster_rcnn_box_coder with scales 10, 10, 5, 5). A picture is letterboxed, never stretched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from aiflow_models.pictures import Picture, decode
from aiflow_models.session import Floats, Network, weights

SIDE = 300
MOST = 20
MIN_SCORE = 0.3  # below, boxes on plain backgrounds outnumber products
_MIN_LOGIT = float(np.log(MIN_SCORE / (1 - MIN_SCORE)))
MAX_OVERLAP = 0.5

_GRIDS = (19, 10, 5, 3, 2, 1)
_MIN_SCALE, _MAX_SCALE = 0.2, 0.95


@dataclass(frozen=True, slots=True)
class Found:
    boxes: Floats  # n x 4: left, top, right, bottom in pixels, best first
    scores: Floats  # n
    labels: tuple[str, ...]
    size: tuple[int, int]  # of the picture: width, height


@cache
def anchors() -> Floats:
    """1917 x 4: centre y, centre x, height, width, as shares of the side."""
    step = (_MAX_SCALE - _MIN_SCALE) / (len(_GRIDS) - 1)
    scales = [_MIN_SCALE + step * index for index in range(len(_GRIDS))] + [1.0]
    rows: list[tuple[float, float, float, float]] = []
    for index, grid in enumerate(_GRIDS):
        scale, following = scales[index], scales[index + 1]
        if index == 0:  # the finest grid has fewer shapes
            shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        else:
            shapes = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
            shapes.append(((scale * following) ** 0.5, 1.0))
        rows.extend(
            ((row + 0.5) / grid, (column + 0.5) / grid, size / ratio**0.5, size * ratio**0.5)
            for row in range(grid)
            for column in range(grid)
            for size, ratio in shapes
        )
    return np.array(rows, np.float32)


def decode_boxes(raw: Floats, anchor: Floats) -> Floats:
    """Network output n x 4 for n anchors to left, top, right, bottom as shares of the side."""
    centre = raw[:, :2] / 10 * anchor[:, 2:] + anchor[:, :2]
    half = np.exp(np.minimum(raw[:, 2:] / 5, 10)) * anchor[:, 2:] / 2
    low, high = centre - half, centre + half
    return np.stack([low[:, 1], low[:, 0], high[:, 1], high[:, 0]], axis=1)


def keep(boxes: Floats, scores: Floats, *, most: int = MOST) -> npt.NDArray[np.intp]:
    """Indices of the boxes that stay, best first: whatever overlaps a better one goes.

    Whatever their class: one product is often seen as two classes, and is still one product.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while order.size and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[overlap(boxes[best], boxes[order]) <= MAX_OVERLAP]
    return np.array(kept, np.intp)


def overlap(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box with each of n others."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    united = np.prod(box[2:] - box[:2]) + areas - shared
    result: Floats = np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)
    return result


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a picture of width x height lies in the square: scaled, centred, grey around."""

    width: int
    height: int

    @property
    def scale(self) -> float:
        return SIDE / max(self.width, self.height)

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height inside the square, at least one pixel."""
        return max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale))

    @property
    def offset(self) -> tuple[int, int]:
        return (SIDE - self.inner[0]) // 2, (SIDE - self.inner[1]) // 2

    def to_square(self, boxes: Floats) -> Floats:
        ratio = np.tile(np.divide(self.inner, (self.width, self.height)), 2)
        return np.asarray(boxes * ratio + np.tile(self.offset, 2), np.float32)

    def to_picture(self, boxes: Floats) -> Floats:
        ratio = np.tile(np.divide(self.inner, (self.width, self.height)), 2)
        return np.asarray((boxes - np.tile(self.offset, 2)) / ratio, np.float32)


def prepare(picture: Picture) -> Floats:
    """3 x 300 x 300 in [-1, 1]."""
    height, width = picture.shape[:2]
    place = Letterbox(width, height)
    square = np.full((SIDE, SIDE, 3), 127, np.uint8)
    (left, top), (inner_width, inner_height) = place.offset, place.inner
    square[top : top + inner_height, left : left + inner_width] = cv2.resize(
        picture, place.inner, interpolation=cv2.INTER_AREA
    )
    return np.ascontiguousarray(square.transpose(2, 0, 1), np.float32) / 127.5 - 1


def read(
    raw_boxes: Floats, raw_scores: Floats, size: tuple[int, int], names: Sequence[str]
) -> Found:
    """What the network said of one picture, in that picture's pixels."""
    # Few of the 1917 anchors see anything, so only those are worked out. Class 0 is the background.
    likely = np.flatnonzero(raw_scores[:, 1:].max(axis=1) >= _MIN_LOGIT)
    logits = raw_scores[likely, 1:]
    classes, scores = logits.argmax(axis=1), 1 / (1 + np.exp(-logits.max(axis=1)))
    width, height = size
    shares = decode_boxes(raw_boxes[likely], anchors()[likely])
    boxes = Letterbox(width, height).to_picture(shares * SIDE)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    kept = keep(boxes, scores)
    labels = tuple(names[index + 1] for index in classes[kept])
    return Found(boxes[kept], scores[kept], labels, size)


class Detector:
    def __init__(self, *, gpu: int | None = None, threads: int | None = None) -> None:
        self._network = Network("detector.onnx", gpu=gpu, threads=threads)
        self._names = (weights() / "detector-labels.txt").read_text("utf-8").splitlines()

    def find(self, prepared: Sequence[Floats], sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """One call of the network for all pictures."""
        boxes, scores = self._network.run(np.stack(prepared))
        return [
            read(boxes[index], scores[index], size, self._names) for index, size in enumerate(sizes)
        ]


class DetectorModel:
    """`Detector` as Triton's rows: see triton_repo/detector/config.pbtxt."""

    inputs = ("image",)

    def __init__(self, *, gpu: int | None, threads: int) -> None:
        self._detector = Detector(gpu=gpu, threads=threads)

    def prepare(self, row: Mapping[str, Any]) -> tuple[Floats, tuple[int, int]]:
        picture = decode(row["image"][0])
        return prepare(picture), (picture.shape[1], picture.shape[0])

    def infer(self, rows: Sequence[tuple[Floats, tuple[int, int]]]) -> list[dict[str, Any]]:
        found = self._detector.find([row[0] for row in rows], [row[1] for row in rows])
        return [_row(each) for each in found]


def _row(found: Found) -> dict[str, Any]:
    """Padded to MOST."""
    count = len(found.labels)
    boxes, scores = np.zeros((MOST, 4), np.float32), np.zeros(MOST, np.float32)
    boxes[:count], scores[:count] = found.boxes, found.scores
    labels = [label.encode() for label in found.labels] + [b""] * (MOST - count)
    return {
        "boxes": boxes,
        "scores": scores,
        "labels": np.array(labels, np.object_),
        "count": np.array([count], np.int32),
        "image_size": np.array(found.size, np.int32),
    }
