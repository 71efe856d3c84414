"""The cuboid's arithmetic: what is looked at around the box, and where the keypoints are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_models import cuboid
from aiflow_models.errors import BadInputError

PICTURE = np.zeros((400, 600, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "square"),
    [
        pytest.param([100, 100, 200, 200], (75, 75, 150), id="half as large again, same centre"),
        pytest.param([100, 150, 300, 250], (50, 50, 300), id="by the longer side"),
        pytest.param([0, 0, 100, 100], (-25, -25, 150), id="may reach outside the picture"),
        pytest.param([500, 300, 900, 900], (475, 275, 150), id="of what is in the picture"),
    ],
)
def test_square_of(box: list[float], square: tuple[float, float, float]) -> None:
    assert cuboid.square_of(PICTURE, np.array(box, np.float32)) == square


@given(
    st.floats(0, 500),
    st.floats(0, 300),
    st.floats(10, 100),
    st.lists(st.floats(0, cuboid.SIDE), min_size=18, max_size=18),
)
def test_keypoints_of_the_crop_are_pixels_of_the_picture(
    left: float, top: float, side: float, points: list[float]
) -> None:
    square = (left, top, side)
    found = cuboid.to_picture(np.array(points, np.float32), square)
    assert found.shape == (9, 2)
    there = (found - [left, top]) / side * cuboid.SIDE
    np.testing.assert_allclose(there.ravel(), points, atol=0.01)


@pytest.mark.parametrize("scale", [1, 8], ids=["a small photo", "a large photo, which is halved"])
def test_what_is_looked_at_is_where_the_keypoints_are_put(scale: int) -> None:
    picture = np.zeros((400 * scale, 600 * scale, 3), np.uint8)
    spot, half = np.array([150, 120]) * scale, 6 * scale
    picture[spot[1] - half : spot[1] + half, spot[0] - half : spot[0] + half] = 255
    square = cuboid.square_of(picture, np.array([100, 80, 200, 160], np.float32) * scale)
    crop = cuboid.prepare(picture, square)
    assert crop.shape == (3, 224, 224)
    assert crop.max() <= 1
    rows, columns = np.nonzero(crop[0] > 0.5)
    centre = np.array([columns.mean(), rows.mean()] * 9, np.float32)
    np.testing.assert_allclose(cuboid.to_picture(centre, square)[0], spot, atol=1.5 * scale)


def test_outside_the_picture_its_border_goes_on() -> None:
    picture = np.full((50, 50, 3), 200, np.uint8)
    crop = cuboid.prepare(picture, cuboid.square_of(picture, np.array([0, 0, 50, 50], np.float32)))
    np.testing.assert_allclose(crop, 200 / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        pytest.param("cup", "cup", id="as the network is called"),
        pytest.param("Coffee cup", "cup", id="as the detector says it"),
        pytest.param(" Footwear ", "sneakers", id="with space around"),
    ],
)
def test_kind_of(label: str, kind: str) -> None:
    assert cuboid.kind_of(label) == kind


def test_an_unsupported_label_lists_all_supported_ones() -> None:
    with pytest.raises(BadInputError, match=r"no 3D box for label 'submarine'") as caught:
        cuboid.kind_of("submarine")
    assert all(kind in str(caught.value) for kind in cuboid.KINDS)
