"""A plan of dimension lines as an SVG document: lines, arrow heads, upright numbers."""

from __future__ import annotations

import numpy as np

from aiflow_servers.geometry.cuboid import Array, Rectangle
from aiflow_servers.geometry.measures import Measure, Plan
from aiflow_servers.imaging.text import FAMILY

# In units of the font size.
_LINE = 0.1
_THIN = 0.055
_CASING = 0.09  # to each side of a line, so that it shows on any ground
_ARROW_LENGTH = 0.68
_ARROW_HALF_WIDTH = 0.23
_EXTENSION_GAP = 0.18  # between the product's edge and the extension line
_CAP_HEIGHT = 0.727  # of Inter; numbers are centred by it


def render(plan: Plan, *, image_size: tuple[int, int], color: str) -> str:
    """The document, of the photo's size and transparent where nothing is drawn.

    Args:
        plan: what to draw.
        image_size: width and height in pixels.
        color: of lines and numbers, "#rrggbb".
    """
    width, height = image_size
    ground = _ground(color)
    font_px, measures = plan.font_px, plan.measures
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    )
    # All casings first: the casing of one dimension must not cut the line of another.
    casings = [_lines(m, font_px, color=ground, grow=2 * _CASING, opacity=0.8) for m in measures]
    lines = [_lines(m, font_px, color=color, grow=0, opacity=1) for m in measures]
    labels = [_label(m, font_px, color=color, ground=ground) for m in measures]
    return "\n".join([head, *casings, *lines, *labels, "</svg>"])


def _ground(color: str) -> str:
    """White behind dark colours, near-black behind light ones."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 170 else "#1d1d1f"


def _lines(measure: Measure, font_px: float, *, color: str, grow: float, opacity: float) -> str:
    thin, thick = (_THIN + grow) * font_px, (_LINE + grow) * font_px
    drawn = [_stroke(_shortened(e, font_px), thin) for e in measure.extensions]
    if measure.leader is not None:
        drawn.append(_stroke(measure.leader, thin))
    start, end = measure.line
    length = float(np.hypot(*(end - start)))
    arrow = min(_ARROW_LENGTH * font_px, 0.36 * length)
    along = (end - start) / length
    drawn.append(_stroke(np.array([start + along * arrow * 0.8, end - along * arrow * 0.8]), thick))
    drawn += [
        _arrow(start, -along, arrow, grow * font_px),
        _arrow(end, along, arrow, grow * font_px),
    ]
    return (
        f'<g stroke="{color}" fill="{color}" opacity="{opacity}" stroke-linecap="round" '
        f'stroke-linejoin="round">{"".join(drawn)}</g>'
    )


def _shortened(extension: Array, font_px: float) -> Array:
    """The extension line without the gap at the product's edge, unless nothing would be left."""
    start, end = extension
    length = float(np.hypot(*(end - start)))
    gap = min(_EXTENSION_GAP * font_px, length / 3)
    return np.array([start + (end - start) * (gap / max(length, 1e-9)), end])


def _stroke(segment: Array, width: float) -> str:
    (x1, y1), (x2, y2) = segment
    return (
        f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" '
        f'stroke-width="{width:.3f}"/>'
    )


def _arrow(tip: Array, along: Array, length: float, grow: float) -> str:
    side = np.array([-along[1], along[0]]) * length * (_ARROW_HALF_WIDTH / _ARROW_LENGTH)
    back = tip - along * length
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in (tip, back + side, back - side))
    return f'<polygon points="{points}" stroke-width="{grow:.3f}"/>'


def _label(measure: Measure, font_px: float, *, color: str, ground: str) -> str:
    box: Rectangle = measure.label_box
    middle_x, middle_y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return (
        f'<rect x="{box.left:.2f}" y="{box.top:.2f}" width="{box.width:.2f}" '
        f'height="{box.height:.2f}" rx="{0.36 * font_px:.2f}" fill="{ground}" opacity="0.94"/>'
        f'<text x="{middle_x:.2f}" y="{middle_y + _CAP_HEIGHT / 2 * font_px:.2f}" '
        f'font-family="{FAMILY}, Helvetica, Arial, sans-serif" font-size="{font_px:.2f}" '
        f'font-weight="600" text-anchor="middle" fill="{color}">{measure.label}</text>'
    )
