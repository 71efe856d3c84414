"""Decodes pictures, and refuses what is too large before any memory is spent on it.

Coordinates everywhere are pixels of the picture as it is stored: an EXIF orientation is not
applied, neither here nor in the CPU servers, so that a box found by one part fits the
same bytes in another.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from aiflow_models.errors import BadInputError

Picture = npt.NDArray[np.uint8]  # height x width x 3, RGB

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 40_000_000

# Start-of-frame markers of JPEG: all of C0..CF but DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def size(data: bytes) -> tuple[int, int]:
    """Width and height as the header states them.

    Raises:
        BadInputError: neither JPEG, PNG nor WebP, or cut off before the size.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", data[16:24])
        elif data[:2] == b"\xff\xd8":
            width, height = _jpeg_size(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            width, height = _webp_size(data)
        else:
            raise BadInputError("not a JPEG, PNG or WebP picture")
    except (struct.error, IndexError) as error:
        raise BadInputError("the picture is cut off within its header") from error
    if width == 0 or height == 0:
        raise BadInputError(f"the picture has no pixels: {width} x {height}")
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise BadInputError("the JPEG is damaged: a marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stand alone, without a length
            at += 2
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise BadInputError("an animated WebP is not a picture; send one frame")
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + struct.unpack("<I", data[27:30] + b"\0")[0],
        )
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _is_whole(data: bytes) -> bool:
    """Whether the end is there; the decoders fill what is missing with grey without a word."""
    if data[:2] == b"\xff\xd8":
        # The last scan, because a thumbnail before it has an end of its own.
        return data.rfind(b"\xff\xda") < data.rfind(b"\xff\xd9")
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return b"IEND" in data[-1024:]


def decode(data: bytes) -> Picture:
    """Decodes to RGB; grey becomes RGB and what is transparent becomes white.

    Raises:
        BadInputError: too large, damaged, or no picture at all.
    """
    if not data:
        raise BadInputError("the picture is empty")
    if len(data) > MAX_BYTES:
        raise BadInputError(
            f"the picture has {len(data) / 2**20:.1f} MiB; send at most {MAX_BYTES // 2**20}"
        )
    width, height = size(data)
    if width * height > MAX_PIXELS:
        raise BadInputError(
            f"the picture of {width} x {height} has {width * height / 1e6:.1f} megapixels; send at"
            f" most {MAX_PIXELS // 10**6}"
        )
    if not _is_whole(data):
        raise BadInputError("the picture is cut off: its end is missing")
    try:
        # UNCHANGED keeps transparency and leaves the EXIF orientation alone.
        decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadInputError("the picture is damaged and cannot be decoded") from error
    if decoded is None:
        raise BadInputError("the picture is damaged and cannot be decoded")
    return _rgb(decoded)


def _rgb(decoded: Any) -> Picture:
    if decoded.dtype == np.uint16:
        decoded = (decoded >> 8).astype(np.uint8)
    if decoded.ndim == 2:
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_GRAY2RGB), np.uint8)
    if decoded.shape[2] == 4:
        alpha = decoded[..., 3:].astype(np.uint16)
        blended = (decoded[..., :3] * alpha + 255 * (255 - alpha)) // 255
        decoded = blended.astype(np.uint8)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def check_box(box: npt.NDArray[np.float32], picture: Picture) -> tuple[float, float, float, float]:
    """The box cut to the picture.

    Raises:
        BadInputError: not finite, empty, or outside the picture.
    """
    if not np.isfinite(box).all():
        raise BadInputError(f"the box has a number that is not finite: {box.tolist()}")
    height, width = picture.shape[:2]
    left, top = max(0.0, float(box[0])), max(0.0, float(box[1]))
    right, bottom = min(float(width), float(box[2])), min(float(height), float(box[3]))
    if right - left < 1 or bottom - top < 1:
        raise BadInputError(
            f"the box {box.tolist()} (left, top, right, bottom) covers nothing of the picture of "
            f"{width} x {height} pixels"
        )
    return left, top, right, bottom
