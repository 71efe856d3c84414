"""Fitting a box to points, and which of its faces are seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.geometry.poses import Pose, facing, keypoints

from aiflow_sdk.errors import RefusedError
from aiflow_servers.geometry import cuboid
from aiflow_servers.geometry.cuboid import Rectangle, X, Y, Z

POSES = st.builds(
    Pose,
    yaw=st.floats(-180, 180),
    pitch=st.floats(-60, 75),
    roll=st.floats(-15, 15),
    size=st.tuples(st.floats(1, 6), st.floats(1, 6), st.floats(1, 6)),
    distance=st.floats(1.6, 12),
)


@settings(max_examples=200)
@given(POSES)
def test_exact_points_come_back(pose: Pose) -> None:
    points = keypoints(pose)
    fitted = cuboid.fit(points).corners
    # The ridge that holds perspective back costs a little where there is a lot of it.
    assert np.abs(fitted - points[1:]).max() < 0.04 * 240


@settings(max_examples=200)
@given(POSES)
def test_the_faces_seen_are_the_ones_turned_to_the_camera(pose: Pose) -> None:
    seen = cuboid.visible_faces(cuboid.fit(keypoints(pose)))
    assert 1 <= len(seen) <= 3
    # Faces seen almost edge on may fall to either side.
    for face in facing(pose) - seen:
        assert _share(pose, face) < 0.08
    assert not any((axis, 1 - side) in seen for axis, side in seen)


def _share(pose: Pose, face: tuple[int, int]) -> float:
    corners = np.array(keypoints(pose)[1:])
    x, y = corners[cuboid._face_corners(*face)].T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    spread = corners.max(axis=0) - corners.min(axis=0)
    return float(area / np.prod(spread))


def test_noise_is_averaged_out() -> None:
    pose = Pose(extent=0.9)
    true = np.array(keypoints(pose)[1:])
    before, after = 0.0, 0.0
    for seed in range(20):
        noisy = keypoints(pose, noise_px=6, seed=seed)
        before += float(np.linalg.norm(np.array(noisy[1:]) - true))
        after += float(np.linalg.norm(cuboid.fit(noisy).corners - true))
    # A box has 11 degrees of freedom and nine points 18: at best the root of their ratio, 0.78.
    assert after < 0.85 * before


@pytest.mark.parametrize(
    ("points", "said"),
    [
        pytest.param([(5.0, 5.0)] * 9, "one spot", id="all points on one spot"),
        pytest.param([(i * 10.0, i * 5.0) for i in range(9)], "one line", id="all on one line"),
        pytest.param([(float("nan"), 0.0)] * 9, "finite", id="not numbers"),
        pytest.param([(0.0, 0.0)] * 8, "nine points", id="one too few"),
        pytest.param(
            [(0, 0), (90, 10), (3, 80), (70, 70), (5, 6), (80, 40), (20, 90), (40, 1), (9, 50)],
            "Objectron order",
            id="points in any order",
        ),
    ],
)
def test_points_that_span_no_box(points: list[tuple[float, float]], said: str) -> None:
    with pytest.raises(RefusedError, match=said) as refused:
        cuboid.fit(points)
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "BAD_GEOMETRY")


def test_a_fitted_box_touches_all_sides_of_the_product() -> None:
    product = Rectangle(left=100, top=80, right=380, bottom=310)
    fitted = cuboid.fit_into(cuboid.fit(keypoints(Pose())), product)
    bounds = fitted.bounds
    assert (bounds.left, bounds.top, bounds.right, bounds.bottom) == pytest.approx(
        (100, 80, 380, 310)
    )


def test_a_product_of_quite_another_size_is_refused() -> None:
    with pytest.raises(RefusedError, match="differ"):
        cuboid.fit_into(
            cuboid.fit(keypoints(Pose())), Rectangle(left=0, top=0, right=10, bottom=300)
        )


def test_every_axis_has_four_edges_between_neighbouring_corners() -> None:
    for axis, bit in ((X, 4), (Y, 2), (Z, 1)):
        found = cuboid.edges(axis)
        assert len({(e.start, e.end) for e in found}) == 4
        assert all(e.start ^ e.end == bit and not e.start & bit for e in found)
