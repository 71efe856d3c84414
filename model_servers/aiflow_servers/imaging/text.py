"""Typesetting: which font draws a character, how wide a line is, lines that fit, drawing.

Text is set in Inter, with Noto Sans CJK for Chinese, Japanese and Korean; both come from packages,
so that a picture looks the same on every machine. A character that neither has is refused, never
drawn as an empty box. Scripts that need shaping (Arabic, Devanagari, ...) are among those.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import groupby

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from aiflow_servers.imaging.codec import Rgb
from aiflow_servers.imaging.violations import bad

FAMILY = "Inter"
TRACKING_EM = -0.012  # large text is set a little tighter, as Inter's own display sizes are
_SEMIBOLD = 600
_UNIT_PX = 100.0  # lines are measured at this size and scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A font file, its face in a collection, and the variable axes of a semibold."""

    path: str
    index: int
    axes: tuple[float, ...]


def _path(package: str, *parts: str) -> str:
    return str(resources.files(package).joinpath(*parts))


INTER = Face(
    path=_path("fontpkg_inter", "files", "Inter[opsz,wght].ttf"), index=0, axes=(32, _SEMIBOLD)
)
# Face 2 of the collection has the shapes of simplified Chinese and still every other sign.
CJK = Face(path=_path("manimgx_fonts_cjk", "NotoSansCJK-VF.otf.ttc"), index=2, axes=(_SEMIBOLD,))


def load() -> None:
    """Reads the fonts' coverage now, so that the first picture does not wait for it."""
    face_of("A")
    face_of("\u4e2d")


def normalise(text: str) -> str:
    """Composed characters, with any run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def face_of(char: str) -> Face | None:
    """The font that draws `char`; None where there is none."""
    if ord(char) in _coverage(INTER):
        return INTER
    return CJK if ord(char) in _coverage(CJK) else None


def faces_of(text: Iterable[str]) -> set[Face]:
    return {face for face in map(face_of, set(text)) if face}


def check_drawable(text: Iterable[str], *, field: str) -> None:
    """Refuses text with characters that no font here has."""
    missing = sorted({char for char in text if face_of(char) is None})
    if missing:
        named = ", ".join(
            f"{char} (U+{ord(char):04X})" if char.isprintable() else f"U+{ord(char):04X}"
            for char in missing[:8]
        )
        raise bad(
            field,
            f"has characters that no installed font draws: {named}. Latin, Greek, Cyrillic, "
            "Chinese, Japanese and Korean can be set; leave out or replace the others",
        )


def width_px(text: str, size_px: float) -> float:
    """Advance width of one line."""
    return _positions(text, size_px)[-1]


def draw(
    canvas: Image.Image,
    text: str,
    *,
    center_x: float,
    baseline_y: float,
    size_px: float,
    color: Rgb,
) -> None:
    """Sets one line, centred."""
    pen = ImageDraw.Draw(canvas)
    positions = _positions(text, size_px)
    left = center_x - positions[-1] / 2
    for char, x in zip(text, positions, strict=False):
        font = _font(_known_face(char), size_px)
        pen.text((left + x, baseline_y), char, font=font, fill=color, anchor="ls")


def fit_lines(
    text: str, *, width: float, lines: int, largest_px: float, smallest_px: float
) -> tuple[list[str], float] | None:
    """The largest size at which `text` fits into at most `lines` (1 or 2) lines of `width` pixels.

    One line is preferred to two as long as it is not set smaller than three quarters of them.

    Returns:
        The lines and their size in pixels, or None where even `smallest_px` is too large.
    """
    starts = _positions(text, _UNIT_PX)
    one = min(largest_px, _UNIT_PX * width / max(starts[-1], 1e-6))
    best, size = [text], one
    if lines > 1 and one < largest_px:
        pairs = [
            (starts[end], starts[-1] - starts[start], end, start) for end, start in _breaks(text)
        ]
        # An even pair of lines reads best, and it is also the pair that may be set largest.
        head_px, tail_px, end, start = min(
            pairs, key=lambda pair: max(pair[:2]), default=(0, 0, 0, 0)
        )
        two = min(largest_px, _UNIT_PX * width / max(head_px, tail_px, 1e-6))
        if pairs and two * 0.75 > one:
            best, size = [text[:end], text[start:]], two
    # Letters are fitted to whole pixels, so that small ones run wider than in proportion.
    size *= min(1.0, width / max(width_px(line, size) for line in best))
    return (best, size) if size >= smallest_px else None


def _breaks(text: str) -> Iterator[tuple[int, int]]:
    """Where `text` may be set in two lines: (end of the first, start of the second).

    That is at a space, after a hyphen, and beside a CJK sign unless punctuation would lead a line.
    """
    for i in range(1, len(text) - 1):
        before, after = text[i - 1], text[i]
        closing = unicodedata.category(after) in ("Po", "Pe", "Pf")
        if after == " ":
            yield i, i + 1
        elif before in "-/" or (CJK in (face_of(before), face_of(after)) and not closing):
            yield i, i


def _positions(text: str, size_px: float) -> list[float]:
    """Where each character starts, and last where the line ends.

    Letters are kerned within a word only: Inter pulls a comma and the space after it together so
    far that, at the size of a title, the space is gone.
    """
    positions = [0.0]
    tracking = TRACKING_EM * size_px
    for (face, _), chars in groupby(text, key=lambda char: (_known_face(char), char == " ")):
        run = "".join(chars)
        font = _font(face, size_px)
        start = positions[-1]
        positions += [
            start + font.getlength(run[:end]) + tracking * end for end in range(1, len(run) + 1)
        ]
    return positions


def _known_face(char: str) -> Face:
    face = face_of(char)
    if face is None:
        raise bad("text", f"no installed font draws {char!r}")
    return face


@functools.cache
def _coverage(face: Face) -> frozenset[int]:
    with TTFont(face.path, fontNumber=face.index, lazy=True) as font:
        return frozenset(font.getBestCmap())


@functools.lru_cache(maxsize=64)
def _font(face: Face, size_px: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(face.path, size_px, index=face.index)
    font.set_variation_by_axes(list(face.axes))
    return font
