"""Pictures at the door of the models: what is decoded, what is refused, and why."""

from __future__ import annotations

import contextlib
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_models import pictures
from aiflow_models.errors import BadInputError


def encoded(kind: str, shape: tuple[int, ...] = (20, 30, 3)) -> bytes:
    return cv2.imencode(kind, np.full(shape, 90, np.uint8))[1].tobytes()


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)], ids=["grey", "colour"])
def test_decodes_to_rgb_of_the_size_in_the_header(kind: str, shape: tuple[int, ...]) -> None:
    data = encoded(kind, shape)
    assert pictures.size(data) == (30, 20)
    assert pictures.decode(data).shape == (20, 30, 3)


def test_what_is_transparent_becomes_white() -> None:
    data = cv2.imencode(".png", np.zeros((4, 4, 4), np.uint8))[1].tobytes()
    assert (pictures.decode(data) == 255).all()


BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 30_000, 30_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="nothing at all"),
        pytest.param(b"GIF89a", "not a JPEG, PNG or WebP", id="another format"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "within its header", id="a PNG cut in its header"),
        pytest.param(encoded(".jpg")[:-40], "cut off", id="a JPEG without its end"),
        pytest.param(encoded(".png")[:-20], "cut off", id="a PNG without its end"),
        pytest.param(encoded(".webp")[:-4], "cut off", id="a WebP without its end"),
        pytest.param(BOMB, "900.0 megapixels", id="too many pixels, by the header alone"),
        pytest.param(bytes(pictures.MAX_BYTES + 1), "at most 32", id="too many bytes"),
    ],
)
def test_refuses(data: bytes, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        pictures.decode(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_picture_or_bad_input(data: bytes, head: bytes) -> None:
    with contextlib.suppress(BadInputError):  # anything else fails the test
        pictures.decode(head + data)
