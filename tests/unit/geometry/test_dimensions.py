"""Dimension lines: in the picture, parallel to visible edges, labels legible and apart."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.geometry.poses import Pose, facing, keypoints

from aiflow_sdk.errors import RefusedError
from aiflow_servers.geometry import cuboid
from aiflow_servers.geometry.annotation import Annotation, annotate
from aiflow_servers.geometry.cuboid import Rectangle, edges
from aiflow_servers.geometry.dimensions import axes_of, plan
from aiflow_servers.geometry.measures import Dimension, Measure, Unit, format_length

SIZE = {Dimension.WIDTH: 12.5, Dimension.HEIGHT: 8.0, Dimension.DEPTH: 123.4}


def annotated(pose: Pose, *, noise_px: float = 0.0, product: Rectangle | None = None) -> Annotation:
    return annotate(
        keypoints(pose, noise_px),
        image_size=pose.photo,
        lengths_cm=SIZE,
        product=product,
        unit=Unit.CENTIMETRE,
        color="#e4002b",
    )


def check(annotation: Annotation, photo: tuple[int, int]) -> None:
    measures = annotation.measures
    assert [m.dimension for m in measures] == list(Dimension)
    for measure in measures:
        for points in (measure.line, measure.edge, measure.extensions.reshape(-1, 2)):
            assert (points >= 0).all()
            assert (points <= photo).all()
        box = measure.label_box
        assert 0 <= box.left < box.right <= photo[0]
        assert 0 <= box.top < box.bottom <= photo[1]
        along, beside = np.diff(measure.edge, axis=0)[0], np.diff(measure.line, axis=0)[0]
        assert np.allclose(along, beside, atol=1e-6)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        common = measures[one].label_box.meets(measures[other].label_box)
        assert common.width <= 0 or common.height <= 0
        assert not _through(measures[one].line, measures[other].label_box)
        assert not _through(measures[other].line, measures[one].label_box)


def _through(line: cuboid.Array, box: Rectangle) -> bool:
    points = line[0] + (line[1] - line[0]) * np.linspace(0, 1, 400)[:, None]
    x, y = points.T
    return bool(((x > box.left) & (x < box.right) & (y > box.top) & (y < box.bottom)).any())


def _distance(measure: Measure, point: cuboid.Array) -> float:
    points = measure.line[0] + (measure.line[1] - measure.line[0]) * np.linspace(0, 1, 400)[:, None]
    return float(np.linalg.norm(points - point, axis=1).min())


@settings(max_examples=120)
@given(
    pose=st.builds(
        Pose,
        yaw=st.floats(-180, 180),
        pitch=st.floats(5, 70),
        roll=st.floats(-10, 10),
        size=st.tuples(st.floats(1, 4), st.floats(1, 4), st.floats(1, 4)),
        distance=st.floats(2, 10),
        center=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)),
        extent=st.floats(0.15, 1.3),
        photo=st.sampled_from([(600, 400), (400, 400), (300, 900), (4000, 3000), (64, 48)]),
    ),
    noise=st.floats(0, 0.02),
)
def test_any_box_gives_three_clear_lines(pose: Pose, noise: float) -> None:
    try:
        annotation = annotated(pose, noise_px=noise * pose.extent * min(pose.photo))
    except RefusedError as error:
        refused = error
    else:
        check(annotation, pose.photo)
        return
    # Only a box of which one side is seen, or two with one of them almost edge on.
    assert refused.reason == "BAD_GEOMETRY"
    assert "no edge" in refused.message


@settings(max_examples=50)
@given(
    yaw=st.floats(15, 75) | st.floats(105, 165) | st.floats(-75, -15),
    pitch=st.floats(12, 60),
    size=st.tuples(st.floats(1, 3), st.floats(1, 3), st.floats(1, 3)),
)
def test_a_box_seen_from_above_is_never_refused_and_its_middle_stays_free(
    yaw: float, pitch: float, size: tuple[float, float, float]
) -> None:
    pose = Pose(yaw=yaw, pitch=pitch, size=size)
    annotation = annotated(pose)
    check(annotation, pose.photo)
    middle = np.array(keypoints(pose)[0])
    box = cuboid.fit(keypoints(pose))
    seen = facing(pose)
    axes = axes_of(box)
    for measure in annotation.measures:
        assert _distance(measure, middle) > 0.1 * 0.6 * 400
        nearest = min(
            edges(axes[measure.dimension]),
            key=lambda e: float(np.abs(box.corners[[e.start, e.end]] - measure.edge).sum()),
        )
        assert set(nearest.faces) & seen


def test_a_designer_would_put_them_there() -> None:
    pose = Pose(yaw=-35, pitch=25)
    box = cuboid.fit(keypoints(pose))
    width, height, depth = annotated(pose).measures
    lowest = box.corners[:, 1].argmax()
    # Width and depth start at the lowest corner, where the two bottom front edges meet.
    for measure in (width, depth):
        assert np.abs(measure.edge - box.corners[lowest]).sum(axis=1).min() < 1
    # Height is at one of the two outermost upright edges.
    outer = (box.corners[:, 0].min(), box.corners[:, 0].max())
    assert np.abs(height.edge[:, 0].mean() - outer).min() < 25
    # All three are outside the product.
    for measure in (width, height, depth):
        away = measure.line.mean(axis=0) - box.center
        assert np.linalg.norm(away) > np.linalg.norm(measure.edge.mean(axis=0) - box.center)


@pytest.mark.parametrize("yaw", [-70, -20, 20, 70])
def test_width_is_the_edge_that_runs_left_to_right(yaw: float) -> None:
    width, height, depth = annotated(Pose(yaw=yaw)).measures

    def flat(measure: Measure) -> float:
        x, y = np.abs(measure.line[1] - measure.line[0])
        return float(x / np.hypot(x, y))

    assert flat(width) > flat(depth)
    assert flat(height) < 0.35


def test_the_box_is_fitted_to_the_product() -> None:
    product = Rectangle(left=150, top=90, right=420, bottom=300)
    measures = annotated(Pose(), product=product).measures
    points = np.concatenate([m.edge for m in measures])
    assert points[:, 1].max() == pytest.approx(300, abs=0.1)
    assert product.left - 0.1 <= points[:, 0].min()
    assert points[:, 0].max() <= product.right + 0.1


def test_a_product_that_fills_the_photo_still_gets_its_lines() -> None:
    product = Rectangle(left=-5, top=-5, right=605, bottom=402)
    check(annotated(Pose(), product=product), (600, 400))


@pytest.mark.parametrize("center", [(0.0, 0.0), (1.0, 0.5), (0.5, 1.0)])
def test_a_box_half_out_of_the_photo_is_measured_on_what_is_inside(
    center: tuple[float, float],
) -> None:
    check(annotated(Pose(center=center)), (600, 400))


def test_a_box_outside_the_photo_is_refused() -> None:
    with pytest.raises(RefusedError, match="outside") as refused:
        annotated(Pose(center=(3.0, 0.5)))
    assert refused.value.reason == "BAD_GEOMETRY"


def test_a_box_seen_from_straight_ahead_is_refused() -> None:
    with pytest.raises(RefusedError, match="no edge along the depth") as refused:
        annotated(Pose(yaw=0, pitch=0, distance=50))
    assert refused.value.reason == "BAD_GEOMETRY"


@pytest.mark.parametrize(
    ("length_cm", "unit", "written"),
    [
        (12.5, Unit.CENTIMETRE, "12.5 cm"),
        (12.0, Unit.CENTIMETRE, "12 cm"),
        (12.3000001907, Unit.CENTIMETRE, "12.3 cm"),
        (0.15, Unit.CENTIMETRE, "0.15 cm"),
        (10_000, Unit.CENTIMETRE, "10000 cm"),
        (12.5, Unit.MILLIMETRE, "125 mm"),
        (0.12, Unit.MILLIMETRE, "1.2 mm"),
        (0.1, Unit.MILLIMETRE, "1 mm"),
        (12.5, Unit.INCH, "4.9 in"),
        (2.54, Unit.INCH, "1.0 in"),
        (0.1, Unit.INCH, "0.04 in"),
    ],
)
def test_lengths_as_people_write_them(length_cm: float, unit: Unit, written: str) -> None:
    assert format_length(length_cm, unit) == written


def test_the_svg_is_of_the_photos_size_and_says_the_three_numbers() -> None:
    annotation = annotated(Pose())
    root = ET.fromstring(annotation.svg)
    assert (root.get("width"), root.get("height")) == ("600", "400")
    assert root.get("viewBox") == "0 0 600 400"
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert [t.text for t in texts] == ["12.5 cm", "8 cm", "123.4 cm"]
    assert not any(t.get("transform") for t in texts)
    assert all(t.get("fill") == "#e4002b" for t in texts)


def test_labels_are_large_enough_to_read() -> None:
    for extent in (0.2, 0.5, 1.0):
        box = cuboid.fit(keypoints(Pose(extent=extent)))
        font_px = plan(box, image_size=(600, 400), lengths_cm=SIZE, unit=Unit.INCH).font_px
        assert 0.02 * 400 <= font_px <= 0.05 * 400
