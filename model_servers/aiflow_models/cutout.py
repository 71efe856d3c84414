"""Cuts a product out: U2-Netp on the box with a margin, its edge refined at full resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from aiflow_models.pictures import Picture, check_box, decode
from aiflow_models.session import Floats, Network

SIDE = 320
# Of the box's sides, on each side. The network tells a product by what is around it: with less it
# broke the cup on its saucer apart, which a detector boxes without the saucer.
MARGIN = 0.75

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)
# What is fainter than LOW is haze, what is denser than HIGH is product.
_LOW, _HIGH = 0.25, 0.75

Crop = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture
Mask = npt.NDArray[np.uint8]


def crop_of(picture: Picture, box: Floats, margin: float = MARGIN) -> Crop:
    """The box with a margin, within the picture; a box of all zeros means the whole picture."""
    height, width = picture.shape[:2]
    if not box.any():
        return 0, 0, width, height
    left, top, right, bottom = check_box(box, picture)
    across, down = (right - left) * margin, (bottom - top) * margin
    return (
        max(0, int(left - across)),
        max(0, int(top - down)),
        min(width, int(np.ceil(right + across))),
        min(height, int(np.ceil(bottom + down))),
    )


def prepare(picture: Picture, crop: Crop) -> Floats:
    """3 x 320 x 320, normalised as U2-Net was trained."""
    left, top, right, bottom = crop
    part = cv2.resize(picture[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    scaled = part.astype(np.float32) / max(1, int(part.max()))
    return np.ascontiguousarray(((scaled - _MEAN) / _SPREAD).transpose(2, 0, 1))


def paste(saliency: Floats, picture: Picture, crop: Crop, box: Crop) -> Mask:
    """A mask of the picture's size out of the network's 320 x 320, of what reaches into the box."""
    left, top, right, bottom = crop
    inside = np.s_[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
    part = picture[top:bottom, left:right]
    low, high = float(saliency.min()), float(saliency.max())
    even = (saliency - low) / max(high - low, 1e-6)
    # The network's edge is as coarse as its input; the photo's own edge shows where it really is.
    height, width = part.shape[:2]
    soft: Floats = np.asarray(
        cv2.resize(even, (width, height), interpolation=cv2.INTER_CUBIC), np.float32
    )
    radius = max(2, round(max(width, height) / SIDE * 2))
    grey = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)
    guided = _guided(grey, soft, radius)
    crisp = np.clip((guided - _LOW) / (_HIGH - _LOW), 0, 1)
    solid = (_product(crisp, inside) * crisp * 255 + 0.5).astype(np.uint8)
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[top:bottom, left:right] = _fill_pinholes(solid)
    return mask


def _guided(guide: Floats, mask: Floats, radius: int) -> Floats:
    """The guided filter of He, Sun and Tang (2010): `mask` with the edges of `guide`."""
    window = (2 * radius + 1, 2 * radius + 1)
    mean_guide, mean_mask = cv2.blur(guide, window), cv2.blur(mask, window)
    covariance = cv2.blur(guide * mask, window) - mean_guide * mean_mask
    variance = cv2.blur(guide * guide, window) - mean_guide * mean_guide
    slope = covariance / (variance + 1e-3)
    level = mean_mask - slope * mean_guide
    result: Floats = cv2.blur(slope, window) * guide + cv2.blur(level, window)
    return result


def _product(crisp: Floats, inside: tuple[slice, slice]) -> npt.NDArray[np.bool_]:
    """Where the product is: pieces that reach inside, if a twentieth as large as the largest."""
    # Grown by a few pixels, so that the soft edge of a piece belongs to it.
    grown = cv2.dilate((crisp > 0.5).astype(np.uint8), np.ones((5, 5), np.uint8))
    _, pieces, facts, _ = cv2.connectedComponentsWithStats(grown)
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    areas[np.setdiff1d(pieces, pieces[inside])] = 0
    kept: npt.NDArray[np.bool_] = (areas >= max(1, areas.max() / 20))[pieces]
    return kept


def _fill_pinholes(mask: Mask) -> Mask:
    """Closes holes below a five-hundredth of the product; a cup's handle keeps its opening."""
    outside = (mask < 128).astype(np.uint8)
    _, pieces, facts, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    areas = facts[:, cv2.CC_STAT_AREA]
    small = areas < np.count_nonzero(mask >= 128) / 500
    small[0] = False
    return np.where(small[pieces], np.uint8(255), mask)


def encode(mask: Mask) -> bytes:
    # Level 1: a mask compresses well at any level, and time is what a caller waits for.
    done, png = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise RuntimeError("the mask could not be written as PNG")
    return png.tobytes()


class Cutout:
    def __init__(self, *, gpu: int | None = None, threads: int | None = None) -> None:
        self._network = Network("cutout.onnx", gpu=gpu, threads=threads)

    def saliency(self, prepared: Sequence[Floats]) -> Floats:
        """One map of 320 x 320 a picture; one call of the network for all pictures."""
        # The first of the seven outputs is the one that joins the others.
        return self._network.run(np.stack(prepared))[0][:, 0]


class CutoutModel:
    """`Cutout` as Triton's rows: see triton_repo/cutout/config.pbtxt."""

    inputs = ("image", "box")

    def __init__(self, *, gpu: int | None, threads: int) -> None:
        self._cutout = Cutout(gpu=gpu, threads=threads)

    def prepare(self, row: Mapping[str, Any]) -> tuple[Floats, Picture, Crop, Crop]:
        picture = decode(row["image"][0])
        crop = crop_of(picture, row["box"])
        return prepare(picture, crop), picture, crop, crop_of(picture, row["box"], margin=0)

    def infer(self, rows: Sequence[tuple[Floats, Picture, Crop, Crop]]) -> list[dict[str, Any]]:
        saliency = self._cutout.saliency([row[0] for row in rows])
        masks = [paste(saliency[i], *row[1:]) for i, row in enumerate(rows)]
        return [{"mask": np.array([encode(mask)], np.object_)} for mask in masks]
