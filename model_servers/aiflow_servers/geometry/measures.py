"""A product's dimensions as they are drawn: which, how long, where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aiflow_servers.geometry.cuboid import Array, Rectangle


class Dimension(Enum):
    WIDTH = "width"
    HEIGHT = "height"
    DEPTH = "depth"


class Unit(Enum):
    CENTIMETRE = "cm"
    MILLIMETRE = "mm"
    INCH = "in"


_PER_CM = {Unit.CENTIMETRE: 1.0, Unit.MILLIMETRE: 10.0, Unit.INCH: 1 / 2.54}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One dimension, ready to be drawn; points are x, y in pixels.

    Attributes:
        edge: start and end of the measured edge, 2 x 2.
        line: start and end of the dimension line, 2 x 2.
        extensions: from each end of the edge to a little past the line, 2 x 2 x 2.
        label_box: the rectangle behind the number.
        leader: from the line to a label that stands away from it; None where it does not.
        label: such as "12.5 cm".
    """

    dimension: Dimension
    edge: Array
    line: Array
    extensions: Array
    label_box: Rectangle
    leader: Array | None
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The three measures (width, height, depth) and the font size of their labels in pixels."""

    measures: tuple[Measure, Measure, Measure]
    font_px: float


def format_length(length_cm: float, unit: Unit) -> str:
    """One decimal, two below one unit, none where it is a nought; millimetres whole from 10 on."""
    value = length_cm * _PER_CM[unit]
    digits = 2 if value < 0.995 else 1
    if unit is Unit.MILLIMETRE:
        digits = 0 if value >= 10 else 1
    written = f"{value:.{digits}f}"
    if "." in written and unit is not Unit.INCH:
        written = written.rstrip("0").rstrip(".")
    return f"{written} {unit.value}"
