"""What is taken for a picture and what is refused, before and while it is decoded."""

import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from unit.imaging import samples

from aiflow_sdk.errors import BadInputError
from aiflow_servers.imaging import codec
from aiflow_servers.imaging.codec import Format

_GOOD_PNG = samples.encoded(samples.photo())
_GOOD_JPEG = samples.encoded(samples.photo(), "JPEG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "is empty", id="no bytes"),
        pytest.param(b"<svg/>", "is not a PNG, JPEG or WebP", id="text"),
        pytest.param(
            samples.encoded(samples.photo(), "GIF"), "is not a PNG, JPEG or WebP", id="a GIF"
        ),
        pytest.param(_GOOD_PNG[: len(_GOOD_PNG) // 2], "is damaged", id="half a PNG"),
        pytest.param(_GOOD_JPEG[:-200], "is damaged", id="a JPEG without its end"),
        pytest.param(_GOOD_PNG[:20], "cannot be decoded", id="the first bytes of a PNG"),
        pytest.param(
            _GOOD_PNG[:60] + bytes(8) + _GOOD_PNG[68:], "is damaged", id="a PNG with wrong bytes"
        ),
        pytest.param(samples.png_header(30_000, 30_000), "40 megapixels", id="a bomb of a PNG"),
        pytest.param(samples.png_header(6325, 6325), "40 megapixels", id="just over 40 megapixels"),
        pytest.param(samples.png_header(1, 2**31 - 1), "40 megapixels", id="the tallest PNG"),
        pytest.param(_GOOD_PNG + bytes(codec.MAX_BYTES), "32 MiB", id="over 32 MiB"),
    ],
)
def test_bad_pictures_are_refused_by_field_and_fast(data: bytes, said: str) -> None:
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(BadInputError, match=said) as refused:
        codec.decode_photo(data, field="photo")
    assert time.monotonic() - started < 5  # decoding a bomb would take much longer
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert list(refused.value.violations) == ["photo"]


def test_exactly_40_megapixels_pass_the_header() -> None:
    assert codec.open_header(samples.png_header(8000, 5000), field="photo").size == (8000, 5000)


@pytest.mark.parametrize(
    ("image", "form"),
    [
        pytest.param(samples.photo(), "PNG", id="colour PNG"),
        pytest.param(samples.photo(), "JPEG", id="JPEG"),
        pytest.param(samples.photo(), "WEBP", id="WebP"),
        pytest.param(samples.photo().convert("CMYK"), "JPEG", id="a printer's JPEG"),
        pytest.param(samples.photo().convert("L"), "PNG", id="grey"),
        pytest.param(samples.photo().convert("P"), "PNG", id="palette"),
        pytest.param(samples.photo().convert("1"), "PNG", id="black and white"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(image: Image.Image, form: str) -> None:
    got = codec.decode_photo(samples.encoded(image, form), field="photo")
    assert (got.mode, got.size) == ("RGB", image.size)
    off = np.abs(np.asarray(got, dtype=int) - np.asarray(image.convert("RGB"), dtype=int))
    assert off.mean() < 6


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    got = codec.decode_photo(samples.encoded(grey), field="photo")
    assert got.getpixel((0, 0)) == (127, 127, 127)


def test_transparent_parts_become_white() -> None:
    got = codec.decode_photo(
        samples.encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), field="photo"
    )
    assert got.getpixel((0, 0)) == (255, 255, 255)


def test_an_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = samples.encoded(samples.photo(), "JPEG", exif=exif)
    assert codec.decode_photo(data, field="photo").size == (samples.WIDTH, samples.HEIGHT)


def test_a_colour_profile_is_carried_over() -> None:
    data = samples.encoded(samples.photo(), icc_profile=b"a profile")
    photo = codec.decode_photo(data, field="photo")
    again = codec.encode(photo, Format.PNG, field="format")
    assert codec.open_header(again.data, field="photo").info["icc_profile"] == b"a profile"


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        pytest.param(samples.mask((60, 45)), "same size", id="of another size"),
        pytest.param(samples.photo(), "8-bit grey", id="in colour"),
        pytest.param(samples.mask().convert("LA"), "8-bit grey", id="with transparency"),
    ],
)
def test_masks_that_cannot_be_meant(mask: Image.Image, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        codec.decode_mask(
            samples.encoded(mask),
            size=(samples.WIDTH, samples.HEIGHT),
            photo_field="photo",
            field="mask",
        )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_grey_mask_may_come_in_any_format(form: str) -> None:
    got = codec.decode_mask(
        samples.encoded(samples.mask(), form),
        size=(samples.WIDTH, samples.HEIGHT),
        photo_field="photo",
        field="mask",
    )
    assert got.mode == "L"


@pytest.mark.parametrize("form", list(Format))
def test_answers_are_what_they_say(form: Format) -> None:
    picture = codec.encode(samples.photo(), form, field="format")
    header = codec.open_header(picture.data, field="image")
    assert header.format == form.value
    assert Image.MIME[form.value] == picture.media_type
    assert header.size == (picture.width, picture.height)


def test_a_format_that_cannot_hold_the_picture_is_named() -> None:
    with pytest.raises(BadInputError, match="choose PNG") as refused:
        codec.encode(Image.new("RGB", (16_384, 1)), Format.WEBP, field="format")
    assert "format" in refused.value.violations


def test_an_answer_over_32_mib_is_refused() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3600, 3600, 3), dtype=np.uint8)
    with pytest.raises(BadInputError, match="at most 32 MiB are sent"):
        codec.encode(Image.fromarray(noise), Format.PNG, field="format")
