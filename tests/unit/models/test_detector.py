"""The detector's arithmetic: anchors, letterbox, and which boxes stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_models import detector
from aiflow_models.cuboid import kind_of
from aiflow_models.errors import BadInputError


def test_anchors_are_the_networks() -> None:
    found = detector.anchors()
    assert found.shape == (1917, 4)
    # The finest grid's first cell, and the one cell of the coarsest.
    np.testing.assert_allclose(found[0], [0.5 / 19, 0.5 / 19, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found[-1], [0.5, 0.5, 0.95**0.5, 0.95**0.5], rtol=1e-6)


def test_no_offset_gives_the_anchor_itself() -> None:
    box = detector.decode_boxes(np.zeros((1917, 4), np.float32), detector.anchors())[-6]
    np.testing.assert_allclose(box, [0.025, 0.025, 0.975, 0.975], rtol=1e-5)


A, A_NEARLY, B = [0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        pytest.param([A, B], [0.5, 0.9], [1, 0], id="apart, both stay, best first"),
        pytest.param([A, A_NEARLY], [0.5, 0.9], [1], id="on top of one another, the better stays"),
        pytest.param([A, [5, 0, 15, 10]], [0.9, 0.5], [0, 1], id="a third shared, both stay"),
        pytest.param([], [], [], id="none"),
    ],
)
def test_keep(boxes: list[list[int]], scores: list[float], kept: list[int]) -> None:
    found = detector.keep(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32))
    assert found.tolist() == kept


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_letterbox_there_and_back(width: int, height: int) -> None:
    place = detector.Letterbox(width, height)
    box = np.array([[0, 0, width, height]], np.float32)
    square = place.to_square(box)
    assert square.min() >= 0
    assert square.max() <= detector.SIDE
    np.testing.assert_allclose(place.to_picture(square), box, rtol=1e-4, atol=1e-2)


def test_an_unknown_label_names_the_known_ones() -> None:
    assert kind_of("Coffee cup") == "cup"
    with pytest.raises(BadInputError, match="supported are boot, camera, chair"):
        kind_of("Cat")
