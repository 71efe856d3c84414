"""The contact sheet: its grid, its texts, its limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.imaging import samples

from aiflow_sdk.errors import BadInputError
from aiflow_servers.imaging.codec import Format, Picture
from aiflow_servers.imaging.contact_sheet import Tile, compose_contact_sheet

_PHOTO = samples.encoded(samples.photo())


def sheet(
    count: int,
    *,
    caption: str = "",
    title: str = "",
    columns: int = 0,
    tile_px: int = 64,
    form: Format = Format.PNG,
) -> Picture:
    tiles = [Tile(image=_PHOTO, caption=caption)] * count
    return compose_contact_sheet(tiles, title=title, columns=columns, tile_px=tile_px, form=form)


@settings(max_examples=30)
@given(count=st.integers(1, 64), columns=st.integers(0, 8), captioned=st.booleans())
def test_every_picture_is_there_whole(count: int, columns: int, captioned: bool) -> None:
    picture = sheet(count, columns=columns, caption="a cup" if captioned else "")
    pixels = samples.decoded(picture.data).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60)
    green = (pixels[..., 1] > 140) & (pixels[..., 0] < 40)
    one = samples.decoded(sheet(1).data).astype(int)
    one_red = (one[..., 0] > 180) & (one[..., 1] < 60)
    one_green = (one[..., 1] > 140) & (one[..., 0] < 40)
    assert red.sum() == count * one_red.sum()
    assert green.sum() == count * one_green.sum()
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()


@pytest.mark.parametrize(
    ("count", "columns", "across"),
    [(1, 0, 1), (2, 0, 2), (4, 0, 2), (5, 0, 3), (9, 0, 3), (64, 0, 8), (3, 8, 3), (6, 2, 2)],
)
def test_columns(count: int, columns: int, across: int) -> None:
    picture = sheet(count, columns=columns, tile_px=100)
    gap, border = 7, 12
    rows = math.ceil(count / across)
    assert picture.width == 2 * border + across * 100 + (across - 1) * gap
    assert picture.height == 2 * border + rows * 100 + (rows - 1) * gap


def test_heading_and_captions_take_room_of_their_own() -> None:
    plain = sheet(2, tile_px=200)
    titled = sheet(2, tile_px=200, title="Two cups", caption="a cup")
    assert titled.height > plain.height + 40
    pixels = samples.decoded(titled.data)
    assert (pixels[: titled.height // 6] < 100).any()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"caption": "x" * 80, "tile_px": 64}, "tiles[0].caption"),
        ({"caption": "नमस्ते"}, "tiles[0].caption"),
        ({"title": "W" * 120, "tile_px": 64}, "title"),
    ],
)
def test_text_that_cannot_be_read_is_refused(options: dict[str, str], field: str) -> None:
    with pytest.raises(BadInputError) as refused:
        sheet(1, **options)  # type: ignore[arg-type]
    assert list(refused.value.violations) == [field]


def test_a_long_caption_is_set_smaller() -> None:
    assert sheet(1, caption="x" * 80, tile_px=512).height > sheet(1, tile_px=512).height


def test_the_picture_that_cannot_be_read_is_named() -> None:
    tiles = [Tile(image=_PHOTO, caption=""), Tile(image=b"no", caption="")]
    with pytest.raises(BadInputError) as refused:
        compose_contact_sheet(tiles, title="", columns=0, tile_px=64, form=Format.PNG)
    assert list(refused.value.violations) == ["tiles[1].image"]


def test_a_small_picture_is_enlarged_to_its_tile() -> None:
    pixels = samples.decoded(sheet(1, tile_px=512).data)
    assert np.count_nonzero((pixels[..., 1] > 140) & (pixels[..., 0] < 40)) > 100_000
