"""The product alone: its colours freed of the background, its outline crisp and then feathered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from aiflow_servers.imaging.violations import bad

Floats = npt.NDArray[np.float32]

# A mask pixel at least this sure of the product counts for its bounding box and its pieces.
_SURE = 128
# Pieces of the mask smaller than this share of the largest are specks of a model, not product.
_SPECK_SHARE = 0.01
# A product with a longer side below this is a blot when enlarged, and takes memory to make.
_SMALLEST_PX = 16
# How much local contrast in the photo counts as an edge to which the mask is drawn.
_TEXTURE = 2e-3
# Photo pixels kept around the product while it is enlarged: the reach of the outline's blur.
_RIM_PX = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutout:
    """A product at its final size.

    Attributes:
        color: height x width x 3, 0 to 1, free of background colour up to and past the outline.
        alpha: height x width, 0 to 1; exactly 0 along all four sides.
        left, top, right, bottom: the product's bounding box inside the arrays, in pixels.
    """

    color: Floats
    alpha: Floats
    left: int
    top: int
    right: int
    bottom: int


def product_box(mask: Image.Image, *, field: str) -> tuple[tuple[int, int, int, int], Image.Image]:
    """The bounding box (left, top, right, bottom) of the product and the mask without specks.

    Raises:
        BadInputError: the mask shows no product, or one too small to be enlarged.
    """
    grey = np.asarray(mask)
    sure = (grey >= _SURE).astype(np.uint8)
    # Joined over small gaps first, so that straps and handles belong to their product.
    reach = max(3, round(max(mask.size) * 0.01)) | 1
    joined = cv2.dilate(sure, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    areas = np.bincount(labels[sure > 0], minlength=count)
    if areas.sum() == 0:
        raise bad(field, f"shows no product: no pixel is {_SURE} or brighter")
    keep = areas >= areas.max() * _SPECK_SHARE
    keep[0] = False
    cleaned = np.where(keep[labels], grey, 0).astype(np.uint8)
    boxes = stats[keep]
    left, top = boxes[:, cv2.CC_STAT_LEFT].min(), boxes[:, cv2.CC_STAT_TOP].min()
    right = (boxes[:, cv2.CC_STAT_LEFT] + boxes[:, cv2.CC_STAT_WIDTH]).max()
    bottom = (boxes[:, cv2.CC_STAT_TOP] + boxes[:, cv2.CC_STAT_HEIGHT]).max()
    inside = cleaned[top:bottom, left:right] >= _SURE
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = (
        int(left + columns[0]),
        int(top + rows[0]),
        int(left + columns[-1] + 1),
        int(top + rows[-1] + 1),
    )
    if max(box[2] - box[0], box[3] - box[1]) < _SMALLEST_PX:
        raise bad(field, f"shows a product of less than {_SMALLEST_PX} pixels; send a larger photo")
    return box, Image.fromarray(cleaned)


def cut_out(
    photo: Image.Image,
    mask: Image.Image,
    *,
    box: tuple[int, int, int, int],
    width: float,
    height: float,
    feather_px: float,
) -> Cutout:
    """Cuts the product in `box` out and scales it so that it fits into `width` x `height`."""
    left, top, right, bottom = box
    scale = min(width / (right - left), height / (bottom - top))
    # Room for the filters; beyond the photo the border pixels repeat and the mask is empty.
    pad = _RIM_PX + math.ceil(4 / scale) if scale < 1 else 3 * _RIM_PX
    color = _crop(photo, box, pad=pad, beyond_empty=False)
    alpha = _crop(mask, box, pad=pad, beyond_empty=True)
    if scale < 1:  # work at the final size: a 40-megapixel photo costs no more than a small one
        size = _scaled(color.size, scale)
        color, alpha = (image.resize(size, Image.Resampling.LANCZOS) for image in (color, alpha))
        product = _freed(_unit(color), _unit(alpha))
        shape = _smoothed(_unit(alpha), scale)
    else:
        snapped = _snapped(_unit(color), _unit(alpha))
        freed = _freed(_unit(color), snapped)
        rim = slice(2 * _RIM_PX, -2 * _RIM_PX)
        snapped, freed = snapped[rim, rim], freed[rim, rim]
        size = _scaled((snapped.shape[1], snapped.shape[0]), scale)
        # Both filters before the enlargement: the same to the eye, and as fast at any scale.
        product = _resized(_sharpened(freed) if scale >= 1.2 else freed, size)
        shape = _resized(_smoothed(snapped, scale), size)
    edge = _outlined(shape, feather_px=feather_px)
    rows, columns = np.flatnonzero(edge.max(axis=1) > 0.5), np.flatnonzero(edge.max(axis=0) > 0.5)
    if not rows.size:  # thinner than the outline's own blur
        raise bad("mask", "shows a product too thin to be cut out; its parts are under two pixels")
    return Cutout(
        color=np.clip(product, 0, 1),
        alpha=edge,
        left=int(columns[0]),
        top=int(rows[0]),
        right=int(columns[-1] + 1),
        bottom=int(rows[-1] + 1),
    )


def _crop(
    image: Image.Image, box: tuple[int, int, int, int], *, pad: int, beyond_empty: bool
) -> Image.Image:
    left, top, right, bottom = box
    inside = (
        max(0, left - pad),
        max(0, top - pad),
        min(image.width, right + pad),
        min(image.height, bottom + pad),
    )
    borders = (
        inside[1] - (top - pad),
        bottom + pad - inside[3],
        inside[0] - (left - pad),
        right + pad - inside[2],
    )
    kind = cv2.BORDER_CONSTANT if beyond_empty else cv2.BORDER_REPLICATE
    return Image.fromarray(cv2.copyMakeBorder(np.asarray(image.crop(inside)), *borders, kind))


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _floats(array: npt.NDArray[Any]) -> Floats:
    return np.asarray(array, dtype=np.float32)


def _unit(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _resized(array: Floats, size: tuple[int, int]) -> Floats:
    return _floats(cv2.resize(array, size, interpolation=cv2.INTER_LANCZOS4))


def _snapped(color: Floats, alpha: Floats) -> Floats:
    """The mask's soft edge moved onto the edge in the photo: a guided filter (He et al., 2010)."""
    guide = _floats(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY))
    window = (9, 9)

    def mean(array: npt.NDArray[Any]) -> Floats:
        return _floats(cv2.blur(array, window))

    mean_guide, mean_alpha = mean(guide), mean(alpha)
    variance = mean(guide * guide) - mean_guide * mean_guide
    slope = (mean(guide * alpha) - mean_guide * mean_alpha) / (variance + _TEXTURE)
    offset = mean_alpha - slope * mean_guide
    guided = np.clip(mean(slope) * guide + mean(offset), 0, 1)
    # Where the mask is sure it stays so: a guide with texture must not eat holes into a product.
    return _floats(np.where((alpha < 0.04) | (alpha > 0.96), alpha, guided))


def _freed(color: Floats, alpha: Floats) -> Floats:
    """Colours of the product alone, continued past its outline.

    Blur-fusion foreground estimation (Forte, 2021): the product's colours, averaged over their
    neighbourhood with the mask as weight, corrected by what the mixed pixel really shows.
    """
    result = color
    for side in (41, 7):
        result = _fused(color, result, alpha, side=side)
    return _floats(np.clip(result, 0, 1))


def _fused(color: Floats, estimate: Floats, alpha: Floats, *, side: int) -> Floats:
    weight = alpha[..., None]
    share = cv2.blur(alpha, (side, side))[..., None]
    product = cv2.blur(estimate * weight, (side, side)) / (share + 1e-4)
    ground = cv2.blur(color * (1 - weight), (side, side)) / (1 - share + 1e-4)
    return _floats(product + weight * (color - weight * product - (1 - weight) * ground))


def _sharpened(color: Floats) -> Floats:
    """A mild unsharp mask that gives a picture to be enlarged some of its bite in advance."""
    soft = cv2.GaussianBlur(color, (0, 0), 0.6)
    return _floats(cv2.addWeighted(color, 1.45, soft, -0.45, 0))


def _smoothed(alpha: Floats, scale: float) -> Floats:
    """Without the steps that a mask shows when it is enlarged; more so the larger it gets."""
    return _floats(cv2.GaussianBlur(alpha, (0, 0), min(max(1.0, 0.6 * scale), 2.2)))


def _outlined(smooth: Floats, *, feather_px: float) -> Floats:
    """The mask with a soft edge `feather_px` wide, inside the mask's own outline.

    The contour of the smoothed mask at just over one half is made crisp; from there inwards the
    feather rises with the distance.
    """
    slope = cv2.magnitude(
        cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8),
    )
    # Pixels inside the contour: true to a fraction of one near it, by the slope there.
    near = (smooth - 0.55) / np.maximum(slope, 0.01)
    ramp = np.clip(near + 0.5, 0, 1)
    if feather_px > 1:
        far = cv2.distanceTransform((near > 0).astype(np.uint8), cv2.DIST_L2, 5)
        ramp = np.clip(np.minimum(near, far + 0.7) / feather_px, 0, 1)
        ramp = ramp * ramp * (3 - 2 * ramp)
    edge = _floats(ramp)
    edge[edge < 1 / 255] = 0
    edge[[0, -1], :] = 0
    edge[:, [0, -1]] = 0
    return edge
