"""Small pictures that the tests of the picture servers are made of."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 120, 90


def photo(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A red ellipse on green ground: a fringe of the ground cannot be missed.

    As in any photo, pixels on the outline show some of both.
    """
    ground, product = Image.new("RGB", size, (0, 160, 0)), Image.new("RGB", size, (200, 20, 20))
    return Image.composite(product, ground, mask(size))


def mask(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    fine = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(fine).ellipse(_ellipse(fine.size), fill=255)
    return fine.resize(size, Image.Resampling.BOX)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, with next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def _ellipse(size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    return width // 4, height // 5, 3 * width // 4, 4 * height // 5
