"""The main image: margins, corners, edges, shadow, title."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from unit.imaging import samples

from aiflow_sdk.errors import BadInputError
from aiflow_servers.imaging.codec import Format
from aiflow_servers.imaging.main_image import Layout, MainImage, compose_main_image

LAYOUT = Layout(
    title="",
    canvas_px=400,
    margin=0.08,
    feather_px=2.0,
    shadow=True,
    background=(255, 255, 255),
    format=Format.PNG,
)


def compose(
    photo: Image.Image | None = None, mask: Image.Image | None = None, **changes: object
) -> MainImage:
    return compose_main_image(
        samples.encoded(photo or samples.photo()),
        samples.encoded(mask or samples.mask()),
        dataclasses.replace(LAYOUT, **changes),  # type: ignore[arg-type]
    )


@settings(max_examples=40)
@given(
    margin=st.floats(0.02, 0.3),
    feather_px=st.floats(0, 32),
    canvas_px=st.integers(400, 600),
    shadow=st.booleans(),
    title=st.sampled_from(["", "Cup", "Red espresso cup with saucer and a small spoon, 60 ml"]),
    left_top=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    right_bottom=st.tuples(st.integers(60, 120), st.integers(60, 90)),
)
def test_nothing_ever_touches_the_margin(
    *,
    margin: float,
    feather_px: float,
    canvas_px: int,
    shadow: bool,
    title: str,
    left_top: tuple[int, int],
    right_bottom: tuple[int, int],
) -> None:
    mask = Image.new("L", (samples.WIDTH, samples.HEIGHT), 0)
    mask.paste(255, (*left_top, *right_bottom))
    composed = compose(
        mask=mask,
        margin=margin,
        feather_px=feather_px,
        canvas_px=canvas_px,
        shadow=shadow,
        title=title,
    )
    pixels = samples.decoded(composed.picture.data)
    assert pixels.shape == (canvas_px, canvas_px, 3)
    border = int(margin * canvas_px)
    inside = np.zeros((canvas_px, canvas_px), dtype=bool)
    inside[border : canvas_px - border, border : canvas_px - border] = True
    assert (pixels[~inside] == 255).all()
    left, top, right, bottom = composed.product
    assert border <= left < right <= canvas_px - border
    assert border <= top < bottom <= canvas_px - border


def test_the_product_fills_its_room_without_being_distorted() -> None:
    left, top, right, bottom = compose(shadow=False).product
    room = 400 - 2 * 32
    assert right - left == pytest.approx(room - 2, abs=4)
    assert (right - left) / (bottom - top) == pytest.approx(61 / 55, rel=0.03)
    assert (left + right) / 2 == pytest.approx(200, abs=2)
    assert (top + bottom) / 2 == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    ("size", "blur_px"), [((120, 90), 2), ((1200, 900), 4)], ids=["enlarged", "reduced"]
)
def test_no_fringe_of_the_old_background_shows(size: tuple[int, int], blur_px: float) -> None:
    # Out of focus, so that a wide rim shows product and ground mixed.
    mask = samples.mask(size).filter(ImageFilter.GaussianBlur(blur_px))
    ground, product = Image.new("RGB", size, (0, 160, 0)), Image.new("RGB", size, (200, 20, 20))
    photo = Image.composite(product, ground, mask)
    composed = compose(photo, mask, shadow=False, feather_px=0, background=(0, 0, 0))
    pixels = samples.decoded(composed.picture.data).astype(int)
    # On black every mixture of product and canvas has a tenth as much green as red.
    assert (pixels[..., 1] - pixels[..., 0] // 10).max() <= 30  # 50 and more without the estimate


def test_the_soft_edge_is_as_wide_as_asked() -> None:
    def edge_px(feather_px: float) -> int:
        composed = compose(shadow=False, feather_px=feather_px)
        row = samples.decoded(composed.picture.data)[200, :200, 1]
        return int(((row > 30) & (row < 252)).sum())

    assert edge_px(0) <= 2
    # The very ends of the ramp are too near to the two colours to be told from them.
    assert edge_px(8) == pytest.approx(0.8 * 8, abs=1.5)
    assert edge_px(32) == pytest.approx(0.8 * 32, abs=3)


def test_the_shadow_lies_under_the_product_and_can_be_left_out() -> None:
    with_shadow = samples.decoded(compose(shadow=True).picture.data)
    product = compose(shadow=True).product
    under = with_shadow[round(product[3]) + 3, 200]
    assert 120 < under.mean() < 250
    above = with_shadow[round(product[1]) - 3, 200]
    assert (above == 255).all()
    without = compose(shadow=False)
    assert (samples.decoded(without.picture.data)[round(without.product[3]) + 3, 200] == 255).all()


@pytest.mark.parametrize("background", [(255, 255, 255), (20, 24, 40), (240, 235, 225)])
def test_the_canvas_has_exactly_the_colour_asked_for(background: tuple[int, int, int]) -> None:
    pixels = samples.decoded(compose(background=background, title="Cup").picture.data)
    for corner in (pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]):
        assert tuple(corner) == background


def test_the_title_is_under_the_product_and_can_be_read_on_any_ground() -> None:
    for background in ((255, 255, 255), (20, 24, 40)):
        composed = compose(title="Espresso 咖啡杯", background=background, shadow=False)
        below = samples.decoded(composed.picture.data)[round(composed.product[3]) + 4 :].astype(int)
        contrast = np.abs(below - np.array(background)).sum(axis=2)
        assert contrast.max() > 500
        assert contrast[-32:].max() == 0


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        pytest.param({"title": "مرحبا"}, "title", r"U\+0645", id="script without a font"),
        pytest.param({"title": "a\x07b"}, "title", r"U\+0007", id="control character"),
        pytest.param(
            {"title": "W" * 120, "margin": 0.3}, "title", "shorten it", id="one endless word"
        ),
        pytest.param(
            {"mask": Image.new("L", (120, 90), 0)}, "mask", "shows no product", id="empty mask"
        ),
    ],
)
def test_what_cannot_be_composed_names_its_field(
    changes: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(BadInputError, match=said) as refused:
        compose(**changes)  # type: ignore[arg-type]
    assert list(refused.value.violations) == [field]


def test_a_product_of_a_few_pixels_is_refused() -> None:
    mask = Image.new("L", (120, 90), 0)
    mask.paste(255, (50, 40, 58, 47))
    with pytest.raises(BadInputError, match="less than 16 pixels"):
        compose(mask=mask)


def test_specks_of_the_mask_are_not_product() -> None:
    mask = samples.mask()
    mask.paste(255, (2, 2, 4, 4))
    assert compose(mask=mask).product == compose().product


def test_a_mask_that_fills_the_photo_is_fine() -> None:
    full = Image.new("L", (120, 90), 255)
    left, _, right, _ = compose(mask=full, shadow=False).product
    assert right - left == pytest.approx(400 - 64, abs=8)
