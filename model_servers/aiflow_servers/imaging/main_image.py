"""A clean main image: the product cut out, set on a plain square with margin, shadow and title."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from aiflow_servers.imaging import codec, text
from aiflow_servers.imaging.codec import Format, Picture, Rgb
from aiflow_servers.imaging.cutout import Cutout, Floats, cut_out, product_box
from aiflow_servers.imaging.violations import bad

# Typography, as shares of the canvas.
_TITLE_LARGEST = 0.046
_TITLE_SMALLEST = 0.012
_TITLE_SMALLEST_PX = 9.0  # below that letters run together
_LINE_SPACING = 1.22
_TITLE_GAP = 0.03
_INK_ON_LIGHT: Rgb = (29, 29, 31)
_INK_ON_DARK: Rgb = (245, 245, 247)

# How far a shadow may reach past the product, as a share of the canvas: kept free below and beside.
_SHADOW_BELOW = 0.045
_SHADOW_BESIDE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a main image shall look like; see ComposeMainImageRequest for the ranges."""

    title: str
    canvas_px: int
    margin: float
    feather_px: float
    shadow: bool
    background: Rgb
    format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class MainImage:
    """The composed picture and where the product lies on it (left, top, right, bottom)."""

    picture: Picture
    product: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Title:
    lines: list[str]
    size_px: float

    @property
    def height_px(self) -> float:
        return self.size_px * (1.1 + _LINE_SPACING * (len(self.lines) - 1))


def compose_main_image(photo: bytes, mask: bytes, layout: Layout) -> MainImage:
    """Composes the main image of a product.

    Raises:
        BadInputError: a picture cannot be read, the two differ in size, the mask is empty, or the
            title cannot be set.
    """
    source = codec.decode_photo(photo, field="photo")
    shape = codec.decode_mask(mask, size=source.size, photo_field="photo", field="mask")
    box, shape = product_box(shape, field="mask")

    side, border = layout.canvas_px, _border_px(layout)
    title = _set_title(layout)
    title_room = title.height_px + _TITLE_GAP * side if title else 0.0
    below, beside = (_SHADOW_BELOW * side, _SHADOW_BESIDE * side) if layout.shadow else (0.0, 0.0)
    room = side - 2 * border
    # The outline's blur and feather stay inside too, hence two pixels less.
    width, height = room - 2 * beside - 2, room - below - title_room - 2
    cutout = cut_out(
        source, shape, box=box, width=width, height=height, feather_px=layout.feather_px
    )
    left = round(side / 2 - (cutout.left + cutout.right) / 2)
    # Product, shadow and title are centred as one block.
    block = (cutout.bottom - cutout.top) + below + title_room
    product_top = border + max(1.0, (room - block) / 2)
    top = round(product_top - cutout.top)

    canvas = np.empty((side, side, 3), dtype=np.float32)
    canvas[:] = np.asarray(layout.background, dtype=np.float32) / 255
    if layout.shadow:
        _cast_shadow(canvas, cutout, left=left, top=top, border=border)
    _paste(canvas, cutout, left=left, top=top, border=border)
    image = Image.fromarray(np.rint(canvas * 255).astype(np.uint8))
    image.info = dict(source.info)
    if title:
        _draw_title(image, title, layout, top=top + cutout.bottom + below + _TITLE_GAP * side)
    return MainImage(
        picture=codec.encode(image, layout.format, field="format"),
        product=(
            float(left + cutout.left),
            float(top + cutout.top),
            float(left + cutout.right),
            float(top + cutout.bottom),
        ),
    )


def _border_px(layout: Layout) -> int:
    return int(np.ceil(layout.margin * layout.canvas_px))


def _set_title(layout: Layout) -> _Title | None:
    words = text.normalise(layout.title)
    if not words:
        return None
    text.check_drawable(words, field="title")
    side = layout.canvas_px
    fitted = text.fit_lines(
        words,
        width=side - 2 * _border_px(layout) - 2,
        lines=2,
        largest_px=_TITLE_LARGEST * side,
        smallest_px=max(_TITLE_SMALLEST * side, _TITLE_SMALLEST_PX),
    )
    if fitted is None:
        raise bad(
            "title",
            "does not fit legibly into two lines; shorten it, or use a larger canvas or a "
            "smaller margin",
        )
    return _Title(lines=fitted[0], size_px=fitted[1])


def _draw_title(image: Image.Image, title: _Title, layout: Layout, *, top: float) -> None:
    red, green, blue = layout.background
    ink = _INK_ON_LIGHT if 0.3 * red + 0.59 * green + 0.11 * blue > 128 else _INK_ON_DARK
    for number, line in enumerate(title.lines):
        text.draw(
            image,
            line,
            center_x=image.width / 2,
            # Capitals are about 0.73 em high; hanging letters take up to 0.3 em.
            baseline_y=top + title.size_px * (0.78 + _LINE_SPACING * number),
            size_px=title.size_px,
            color=ink,
        )


def _window(
    canvas: Floats, cutout: Cutout, *, left: int, top: int, border: int
) -> tuple[Floats, Floats, Floats]:
    """The cut-out's part of the canvas that is inside the margin, with its colours and alpha."""
    side, (height, width) = canvas.shape[0], cutout.alpha.shape
    x0, y0 = max(left, border), max(top, border)
    x1, y1 = min(left + width, side - border), min(top + height, side - border)
    rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    return canvas[y0:y1, x0:x1], cutout.color[rows, columns], cutout.alpha[rows, columns, None]


def _paste(canvas: Floats, cutout: Cutout, *, left: int, top: int, border: int) -> None:
    below, color, alpha = _window(canvas, cutout, left=left, top=top, border=border)
    below += alpha * (color - below)


def _cast_shadow(canvas: Floats, cutout: Cutout, *, left: int, top: int, border: int) -> None:
    """Darkens the canvas where the product stands: a thin contact line and a soft wide shade.

    Both follow the product's own lower outline, so that a saucer gets a curved one and a sofa one
    at each foot. Computed at a quarter of the size: there is nothing sharp in it.
    """
    side = canvas.shape[0]
    step = 4
    small = side // step + 1
    mask = np.zeros((small, small), dtype=np.float32)
    height, width = cutout.alpha.shape
    tiny = cv2.resize(
        cutout.alpha, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA
    )
    y, x = top // step, left // step
    y0, x0 = max(0, y), max(0, x)
    y1, x1 = min(small, y + tiny.shape[0]), min(small, x + tiny.shape[1])
    mask[y0:y1, x0:x1] = tiny[y0 - y : y1 - y, x0 - x : x1 - x]

    foot = (top + cutout.bottom) / step
    span = min((cutout.bottom - cutout.top) / step, 0.5 * small)
    rows = np.arange(small, dtype=np.float32)[:, None]
    low = np.clip((rows - (foot - 0.45 * span)) / (0.45 * span), 0, 1) ** 1.5
    lowest = np.clip((rows - (foot - 0.16 * span)) / (0.16 * span), 0, 1)

    unit = small / 500
    contact = _blurred(_lowered(mask * lowest, 2.0 * unit), 2.2 * unit) * 0.55
    shade = _blurred(_lowered(mask * low, 5.5 * unit), 7.0 * unit) * 0.40
    dark = 1 - (1 - contact) * (1 - shade)
    # Out to exactly nothing at the margin.
    edge = border / step
    inset = np.minimum(np.arange(small), small - 1 - np.arange(small)) - edge
    fade = np.clip(inset / (0.018 * small), 0, 1).astype(np.float32)
    dark *= np.minimum(fade[:, None], fade[None, :])
    full = cv2.resize(dark, (side, side), interpolation=cv2.INTER_LINEAR)
    full[:border] = full[side - border :] = 0
    full[:, :border] = full[:, side - border :] = 0
    canvas *= 1 - 0.9 * full[..., None]


def _lowered(mask: Floats, by_px: float) -> Floats:
    shift = np.asarray([[1, 0, 0], [0, 1, by_px]], dtype=np.float32)
    return np.asarray(cv2.warpAffine(mask, shift, mask.shape[::-1]), dtype=np.float32)


def _blurred(mask: Floats, sigma_px: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma_px), dtype=np.float32)
