"""Where a designer would put the dimension lines of a product: which edges, how far off, labels.

Every sensible way to draw each of the three dimensions becomes a candidate with a cost. The
three candidates that cost least together win: clashes between them cost more than any taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiflow_sdk.errors import RefusedError
from aiflow_servers.geometry.cuboid import (
    Array,
    Cuboid,
    Edge,
    Face,
    Rectangle,
    X,
    Y,
    Z,
    edges,
    fit_into,
    visible_faces,
)
from aiflow_servers.geometry.measures import Dimension, Measure, Plan, Unit, format_length
from aiflow_servers.imaging import text

# In units of the label's font size.
_OFFSETS = (1.35, 1.9, 2.5, 0.95, 0.6, 0.3, 0.0, -0.9)
_OVERSHOOT = 0.32
_BORDER = 0.3
_LABEL_HEIGHT = 1.5
_LABEL_PADDING = 0.42
_ARROW = 0.68
_REACHES = (0.35, 1.6, 3.2, 5.0)

# What of a box's width and height must be in the picture for it to be measured there.
_LEAST_INSIDE = 0.25
_SHORTEST_SHARE = 0.02  # of the outline's diagonal; a shorter edge is seen end on
# Costs of a label upon a label, and of a line through a label: more than all tastes together.
_CLASH = 10_000.0
_STRIKE = 2_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    measure: Measure
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A dimension line to be tried: beside this edge (2 x 2), this many font sizes off."""

    dimension: Dimension
    edge: Array
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What all candidates share; `walls` are the outline's sides as a, b, c with a x + b y < c."""

    cuboid: Cuboid
    visible: frozenset[Face]
    walls: Array
    picture: Rectangle
    font_px: float


def axes_of(cuboid: Cuboid) -> dict[Dimension, int]:
    """Height is the upright y; of x and z the one more nearly left to right is the width."""
    flat = [abs(d[0]) / max(float(np.hypot(*d)), 1e-9) for d in map(cuboid.direction, (X, Z))]
    width, depth = (X, Z) if flat[0] >= flat[1] else (Z, X)
    return {Dimension.WIDTH: width, Dimension.HEIGHT: Y, Dimension.DEPTH: depth}


def plan(
    cuboid: Cuboid,
    *,
    image_size: tuple[int, int],
    lengths_cm: Mapping[Dimension, float],
    unit: Unit,
) -> Plan:
    """Chooses edges, lines and label places.

    The part of a box that is outside the picture cannot be drawn on, so such a box is drawn
    together to what the picture holds.

    Raises:
        RefusedError: BAD_GEOMETRY, where the box is out of the picture or a dimension has no
            edge that is seen, as from straight ahead.
    """
    width, height = image_size
    diagonal = float(np.hypot(cuboid.bounds.width, cuboid.bounds.height))
    short = min(width, height)
    font_px = min(0.044 * short, max(0.15 * diagonal, 0.02 * short))
    cuboid = _into_picture(cuboid, width, height, border=_BORDER * font_px + 0.5)
    scene = _Scene(
        cuboid=cuboid,
        visible=visible_faces(cuboid),
        walls=_walls(cuboid),
        picture=Rectangle(left=0, top=0, right=width, bottom=height),
        font_px=font_px,
    )
    axes = axes_of(cuboid)
    choices = [
        _candidates(scene, dimension, axes[dimension], format_length(lengths_cm[dimension], unit))
        for dimension in Dimension
    ]
    chosen = _choose(choices, font_px)
    return Plan(measures=(chosen[0], chosen[1], chosen[2]), font_px=font_px)


def _into_picture(cuboid: Cuboid, width: int, height: int, *, border: float) -> Cuboid:
    inside = Rectangle(left=border, top=border, right=width - border, bottom=height - border)
    bounds = cuboid.bounds
    target = bounds.meets(inside)
    if target == bounds:
        return cuboid
    if min(target.width / bounds.width, target.height / bounds.height) < _LEAST_INSIDE:
        raise _refused("the box lies outside the picture, or nearly so")
    return fit_into(cuboid, target)


def _candidates(scene: _Scene, dimension: Dimension, axis: int, label: str) -> list[_Candidate]:
    bounds = scene.cuboid.bounds
    shortest = max(2.0, _SHORTEST_SHARE * float(np.hypot(bounds.width, bounds.height)))
    size = scene.font_px * np.array(
        [text.width_px(label, 100) / 100 + 2 * _LABEL_PADDING, _LABEL_HEIGHT]
    )
    found: list[_Candidate] = []
    for edge in edges(axis):
        start, end = scene.cuboid.corners[edge.start], scene.cuboid.corners[edge.end]
        if np.hypot(*(end - start)) < shortest:
            continue
        if not any(face in scene.visible for face in edge.faces):
            continue
        cost = _edge_cost(scene, dimension, edge)
        for offset in _OFFSETS:
            line = _Line(dimension=dimension, edge=np.array([start, end]), offset=offset)
            at_line = _at_line(scene, line, label, size)
            found += [
                _Candidate(measure=c.measure, cost=c.cost + cost)
                for c in sorted(at_line, key=lambda c: c.cost)[:5]
            ]
    if not found:
        raise _refused(
            f"no edge along the {dimension.value} is seen from here; take a photo that shows more "
            "than one side of the product"
        )
    return found


def _edge_cost(scene: _Scene, dimension: Dimension, edge: Edge) -> float:
    """What is against measuring at this visible edge.

    Best is an edge of the visible outline: for width and depth low and near, for height far out.
    """
    inner = 30.0 * all(face in scene.visible for face in edge.faces)
    middle = scene.cuboid.corners[[edge.start, edge.end]].mean(axis=0)
    bounds, center = scene.cuboid.bounds, scene.cuboid.center
    if dimension is Dimension.HEIGHT:
        outward = abs(middle[0] - center[0]) / max(bounds.width / 2, 1e-9)
        # Right is where the eye arrives last; a slight taste only.
        return float(inner + 9 * (1 - outward) + (middle[0] < center[0]))
    low = (middle[1] - bounds.top) / max(bounds.height, 1e-9)
    top_face = (Y, 1) in edge.faces
    return float(inner + 9 * (1 - low) + 6 * top_face)


def _at_line(scene: _Scene, at: _Line, label: str, size: Array) -> list[_Candidate]:
    """Every place for the label of one dimension line; none where the line leaves the picture."""
    font_px, edge, offset = scene.font_px, at.edge, at.offset
    along = (edge[1] - edge[0]) / np.hypot(*(edge[1] - edge[0]))
    outward = np.array([-along[1], along[0]])
    if np.dot(outward, edge.mean(axis=0) - scene.cuboid.center) < 0:
        outward = -outward
    line = edge + outward * offset * font_px
    tips = line + outward * np.sign(offset) * _OVERSHOOT * font_px
    if not _all_inside(np.vstack([line, tips]), scene.picture, 0.12 * font_px):
        return []
    off = offset - _OFFSETS[0]
    base = (6 * off if off > 0 else -14 * off) + (
        25 if _inside(line.mean(axis=0)[None], scene)[0] else 0
    )
    reach = _distance_to_segment(scene.cuboid.center, line)
    base += 300 if reach < 0.5 * font_px else 0

    found = []
    for center, cost in _label_places(line, along, outward, size, font_px):
        room = size / 2 + 0.12 * font_px
        inside = np.clip(center, room, (scene.picture.right, scene.picture.bottom) - room)
        moved = float(np.hypot(*(inside - center))) / font_px
        label_box = Rectangle(
            left=float(inside[0] - size[0] / 2),
            top=float(inside[1] - size[1] / 2),
            right=float(inside[0] + size[0] / 2),
            bottom=float(inside[1] + size[1] / 2),
        )
        over_product = 6 * _points_inside(label_box, scene)
        over_center = 200 if _holds(label_box, scene.cuboid.center) else 0
        measure = Measure(
            dimension=at.dimension,
            edge=edge,
            line=line,
            extensions=np.stack([edge, tips], axis=1),
            label_box=label_box,
            leader=_leader(line, inside, size, font_px),
            label=label,
        )
        total = base + cost + 5 * moved + over_product + over_center
        found.append(_Candidate(measure=measure, cost=total))
    return found


def _label_places(
    line: Array, along: Array, outward: Array, size: Array, font_px: float
) -> list[tuple[Array, float]]:
    """Where a label of `size` may be centred and what is against it, before the picture's borders.

    On the line where arrows remain visible at both sides of it; else beside it or past its ends.
    """
    length = float(np.hypot(*(line[1] - line[0])))
    middle = line.mean(axis=0)
    # How much of the line an upright label covers, and how far it reaches to the line's side.
    covered = min(size[0] / max(abs(along[0]), 1e-9), size[1] / max(abs(along[1]), 1e-9))
    half_out = float(np.abs(outward) @ size) / 2
    half_along = float(np.abs(along) @ size) / 2
    places: list[tuple[Array, float]] = []
    if length >= covered + 2.6 * _ARROW * font_px:
        play = (length - covered) / 2 - 1.3 * _ARROW * font_px
        places += [
            (middle + along * play * share, 4 * abs(share)) for share in (0.0, 0.5, -0.5, 1.0, -1.0)
        ]
    for reach in _REACHES:
        away = half_out + reach * font_px
        places += [
            (middle + outward * away + along * half_along * slide, 6 + 5 * reach + 2 * abs(slide))
            for slide in (0.0, 0.7, -0.7)
        ]
        places.append((middle - outward * away, 22 + 5 * reach))
        past = length / 2 + half_along + reach * font_px
        places += [(middle + along * past * side, 10 + 5 * reach) for side in (1, -1)]
    return places


def _leader(line: Array, label_at: Array, size: Array, font_px: float) -> Array | None:
    """From the line to a label that stands well away from it."""
    points = line[0] + (line[1] - line[0]) * np.linspace(0, 1, 9)[:, None]
    gaps = np.hypot(*np.maximum(np.abs(label_at - points) - size / 2, 0).T)
    nearest = int(np.argmin(gaps))
    return np.array([points[nearest], label_at]) if gaps[nearest] > 0.9 * font_px else None


def _choose(choices: list[list[_Candidate]], font_px: float) -> list[Measure]:
    """The three that cost least together, searched among the best of each first."""
    few = [sorted(choice, key=lambda c: c.cost)[:40] for choice in choices]
    chosen, cost = _cheapest(few, font_px)
    if cost >= _STRIKE:
        chosen, _ = _cheapest(choices, font_px)
    return chosen


def _cheapest(choices: list[list[_Candidate]], font_px: float) -> tuple[list[Measure], float]:
    first, second, third = choices
    one, two, three = (np.array([c.cost for c in choice]) for choice in choices)
    total = (
        one[:, None, None]
        + two[None, :, None]
        + three[None, None, :]
        + _clashes(first, second, font_px)[:, :, None]
        + _clashes(first, third, font_px)[:, None, :]
        + _clashes(second, third, font_px)[None, :, :]
    )
    best = np.unravel_index(int(np.argmin(total)), total.shape)
    return [choice[i].measure for choice, i in zip(choices, best, strict=True)], float(total[best])


def _clashes(ones: list[_Candidate], others: list[_Candidate], font_px: float) -> Array:
    """What drawing each of `ones` together with each of `others` costs."""
    boxes_a, boxes_b = _boxes(ones), _boxes(others)
    lines_a = np.stack([c.measure.line for c in ones])
    lines_b = np.stack([c.measure.line for c in others])
    thin_a = np.stack([c.measure.extensions for c in ones])
    thin_b = np.stack([c.measure.extensions for c in others])
    pad = 0.2 * font_px
    cost = _CLASH * _overlap(boxes_a, boxes_b, pad)
    cost = cost + _STRIKE * _strikes(boxes_a, lines_b, pad)
    cost += _STRIKE * _strikes(boxes_b, lines_a, pad).T
    cost += 400.0 * _crosses(lines_a, lines_b)
    for i in (0, 1):
        cost += 40.0 * _strikes(boxes_a, thin_b[:, i], pad)
        cost += 40.0 * _strikes(boxes_b, thin_a[:, i], pad).T
        cost += 30.0 * _crosses(lines_a, thin_b[:, i])
        cost += 30.0 * _crosses(lines_b, thin_a[:, i]).T
    return np.asarray(cost)


def _boxes(candidates: list[_Candidate]) -> Array:
    boxes = (c.measure.label_box for c in candidates)
    return np.array([(b.left, b.top, b.right, b.bottom) for b in boxes])


def _overlap(a: Array, b: Array, pad: float) -> Array:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    apart = high - low
    return np.asarray((apart[..., 0] > -pad) & (apart[..., 1] > -pad), dtype=np.float64)


def _strikes(boxes: Array, segments: Array, pad: float) -> Array:
    """1 where a segment runs through a box: where its shares within x and within y overlap."""
    start = segments[None, :, 0]
    along = segments[None, :, 1] - start
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    one = (boxes[:, None, :2] - pad - start) / along
    other = (boxes[:, None, 2:] + pad - start) / along
    enters = np.maximum(0, np.minimum(one, other)).max(axis=2)
    leaves = np.minimum(1, np.maximum(one, other)).min(axis=2)
    return np.asarray(enters < leaves, dtype=np.float64)


def _crosses(a: Array, b: Array) -> Array:
    def side(p: Array, q: Array, r: Array) -> Array:
        u, v = q - p, r - p
        return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    p, q = a[:, None, 0], a[:, None, 1]
    r, s = b[None, :, 0], b[None, :, 1]
    apart_a = side(p, q, r) * side(p, q, s) < 0
    apart_b = side(r, s, p) * side(r, s, q) < 0
    return np.asarray(apart_a & apart_b, dtype=np.float64)


def _all_inside(points: Array, picture: Rectangle, border: float) -> bool:
    low = np.array([picture.left, picture.top]) + border
    high = np.array([picture.right, picture.bottom]) - border
    return bool(((points >= low) & (points <= high)).all())


def _walls(cuboid: Cuboid) -> Array:
    outline = cuboid.outline
    along = np.roll(outline, -1, axis=0) - outline
    normal = np.column_stack([along[:, 1], -along[:, 0]])
    normal *= np.sign(((outline - cuboid.center) * normal).sum(axis=1))[:, None]
    return np.column_stack([normal, (normal * outline).sum(axis=1)])


def _inside(points: Array, scene: _Scene) -> npt.NDArray[np.bool_]:
    """Which of the points (n x 2) lie within the box's outline."""
    beyond = points @ scene.walls[:, :2].T - scene.walls[:, 2]
    return np.asarray((beyond < 0).all(axis=1))


def _points_inside(box: Rectangle, scene: _Scene) -> int:
    """How many of a box's centre (twice) and corners lie on the product."""
    x = np.array([box.left, box.left, box.right, box.right, 0, 0])
    y = np.array([box.top, box.bottom, box.top, box.bottom, 0, 0])
    x[4:], y[4:] = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return int(_inside(np.column_stack([x, y]), scene).sum())


def _holds(box: Rectangle, point: Array) -> bool:
    return bool(box.left < point[0] < box.right and box.top < point[1] < box.bottom)


def _nearest_on_segment(point: Array, segment: Array) -> Array:
    along = segment[1] - segment[0]
    share = np.clip(np.dot(point - segment[0], along) / max(np.dot(along, along), 1e-9), 0, 1)
    return np.asarray(segment[0] + share * along)


def _distance_to_segment(point: Array, segment: Array) -> float:
    return float(np.hypot(*(point - _nearest_on_segment(point, segment))))


def _refused(problem: str) -> RefusedError:
    return RefusedError(f"keypoints: {problem}", reason="BAD_GEOMETRY")
