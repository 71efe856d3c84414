"""The cutout's arithmetic: what is looked at, and which pieces of the network's map stay."""

from __future__ import annotations

import numpy as np
import pytest

from aiflow_models import cutout
from aiflow_models.errors import BadInputError

PICTURE = np.full((200, 320, 3), 128, np.uint8)
WHOLE = (0, 0, 320, 200)


def map_of(*pieces: tuple[int, int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The network's 320 x 320, with pieces given as left, top, right, bottom in it."""
    found = np.zeros((cutout.SIDE, cutout.SIDE), np.float32)
    for left, top, right, bottom in pieces:
        found[top:bottom, left:right] = 1
    return found


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        pytest.param([0, 0, 0, 0], WHOLE, id="zeros mean the whole picture"),
        pytest.param([100, 80, 140, 120], (70, 50, 170, 150), id="three quarters more a side"),
        pytest.param([0, 0, 40, 40], (0, 0, 70, 70), id="not beyond the picture"),
    ],
)
def test_crop_of(box: list[float], crop: cutout.Crop) -> None:
    assert cutout.crop_of(PICTURE, np.array(box, np.float32)) == crop


def test_a_box_beside_the_picture_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="covers nothing of the picture of 320 x 200"):
        cutout.crop_of(PICTURE, np.array([400, 0, 500, 50], np.float32))


def test_what_is_looked_at_has_the_networks_size() -> None:
    assert cutout.prepare(PICTURE, (10, 20, 90, 50)).shape == (3, 320, 320)
    assert np.isfinite(cutout.prepare(np.zeros_like(PICTURE), WHOLE)).all(), "a black picture too"


def test_the_mask_has_the_pictures_size_and_nothing_outside_the_crop() -> None:
    crop = (100, 50, 200, 150)
    mask = cutout.paste(map_of((80, 80, 240, 240)), PICTURE, crop, box=crop)
    assert mask.shape == (200, 320)
    assert mask.dtype == np.uint8
    assert (mask[90:110, 140:160] == 255).all(), "the piece, scaled to the crop"
    outside = mask.copy()
    outside[50:150, 100:200] = 0
    assert not outside.any()


def test_pieces_that_do_not_reach_into_the_box_are_dropped() -> None:
    # Two pieces side by side; 320 of the map is 200 of the picture's height.
    both = map_of((30, 100, 110, 220), (200, 100, 290, 220))
    box = (20, 60, 120, 140)  # around the first
    mask = cutout.paste(both, PICTURE, WHOLE, box)
    assert (mask[90:110, 60:80] == 255).all()
    assert not mask[:, 180:].any()
    assert cutout.paste(both, PICTURE, WHOLE, WHOLE)[100, 240] == 255, "kept where the box is all"


def test_a_piece_that_reaches_into_the_box_is_kept_whole() -> None:
    mask = cutout.paste(map_of((30, 100, 200, 220)), PICTURE, WHOLE, box=(20, 60, 60, 140))
    assert mask[100, 180] == 255


def test_crumbs_are_dropped_and_pinholes_filled_but_a_handle_keeps_its_opening() -> None:
    drawn = map_of((60, 60, 260, 260), (290, 20, 298, 28))
    drawn[100:108, 100:108] = 0  # a pinhole
    drawn[180:240, 180:240] = 0  # what one sees through a handle
    picture, everything = np.full((320, 320, 3), 128, np.uint8), (0, 0, 320, 320)
    mask = cutout.paste(drawn, picture, everything, everything)
    assert not mask[15:35, 285:305].any(), "the crumb"
    assert (mask[100:108, 100:108] > 128).all(), "the pinhole"
    assert mask[210, 210] == 0, "the opening"
