"""Captioned pictures in a grid of equal tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from aiflow_servers.imaging import codec, text
from aiflow_servers.imaging.codec import Format, Picture, Rgb
from aiflow_servers.imaging.violations import bad

MAX_TILES = 64

_PAPER: Rgb = (255, 255, 255)
_INK: Rgb = (29, 29, 31)
_QUIET_INK: Rgb = (92, 92, 97)
_HAIRLINE: Rgb = (222, 222, 226)

# As shares of a tile's side.
_GAP = 0.07
_BORDER = 0.12
_CAPTION_LARGEST = 0.05
_HEADING_LARGEST = 0.12
_SMALLEST_PX = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """An encoded picture and the line under it."""

    image: bytes
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Measures of the sheet in pixels."""

    columns: int
    rows: int
    tile: int
    gap: int
    border: int
    heading: float
    captions: float

    @property
    def caption_room(self) -> int:
        return round(2.1 * self.captions)

    @property
    def heading_room(self) -> int:
        return round(2.2 * self.heading)

    @property
    def width(self) -> int:
        return 2 * self.border + self.columns * self.tile + (self.columns - 1) * self.gap

    @property
    def height(self) -> int:
        tiles = self.rows * (self.tile + self.caption_room) + (self.rows - 1) * self.gap
        return 2 * self.border + self.heading_room + tiles

    def place(self, number: int) -> tuple[int, int]:
        """The top left corner of a tile."""
        row, column = divmod(number, self.columns)
        return (
            self.border + column * (self.tile + self.gap),
            self.border + self.heading_room + row * (self.tile + self.caption_room + self.gap),
        )


def compose_contact_sheet(
    tiles: Sequence[Tile], *, title: str, columns: int, tile_px: int, form: Format
) -> Picture:
    """Sets 1 to 64 pictures, left to right and top to bottom, whole and centred in their tiles.

    Args:
        tiles: pictures with captions.
        title: heading; empty for none.
        columns: 0 for as square as the number allows, but at most 8.
        tile_px: side of a tile.
        form: how the answer is encoded.

    Raises:
        BadInputError: names the tile whose picture cannot be read, or the text that does not fit.
    """
    heading = text.normalise(title)
    captions = [text.normalise(tile.caption) for tile in tiles]
    grid = _grid(heading, captions, columns=columns, tile_px=tile_px)
    sheet = Image.new("RGB", (grid.width, grid.height), _PAPER)
    if heading:
        text.draw(
            sheet,
            heading,
            center_x=sheet.width / 2,
            baseline_y=grid.border + 0.9 * grid.heading,
            size_px=grid.heading,
            color=_INK,
        )
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = grid.place(number)
        _set_tile(sheet, tile.image, left, top, grid.tile, field=f"tiles[{number}].image")
        if caption:
            text.draw(
                sheet,
                caption,
                center_x=left + grid.tile / 2,
                baseline_y=top + grid.tile + 1.55 * grid.captions,
                size_px=grid.captions,
                color=_QUIET_INK,
            )
    return codec.encode(sheet, form, field="format")


def _grid(heading: str, captions: list[str], *, columns: int, tile_px: int) -> _Grid:
    count = len(captions)
    # A row is never wider than there are pictures to fill it.
    chosen = min(columns or min(8, math.ceil(math.sqrt(count))), count)
    gap, border = max(2, round(_GAP * tile_px)), max(4, round(_BORDER * tile_px))
    width = chosen * tile_px + (chosen - 1) * gap
    # One size for all captions, so that the sheet looks of one piece.
    sizes = [
        _size(c, tile_px, _CAPTION_LARGEST * tile_px, field=f"tiles[{i}].caption")
        for i, c in enumerate(captions)
        if c
    ]
    title_px = _size(heading, width, _HEADING_LARGEST * tile_px, field="title") if heading else 0.0
    return _Grid(
        columns=chosen,
        rows=math.ceil(count / chosen),
        tile=tile_px,
        gap=gap,
        border=border,
        heading=title_px,
        captions=min(sizes, default=0.0),
    )


def _size(line: str, width: float, largest_px: float, *, field: str) -> float:
    """The size at which one line fits."""
    text.check_drawable(line, field=field)
    largest_px = max(largest_px, 1.5 * _SMALLEST_PX)
    fitted = text.fit_lines(
        line, width=width, lines=1, largest_px=largest_px, smallest_px=_SMALLEST_PX
    )
    if fitted is None:
        raise bad(
            field, f"does not fit legibly into {width:.0f} pixels; shorten it or enlarge tile_px"
        )
    return fitted[1]


def _set_tile(
    sheet: Image.Image, data: bytes, left: int, top: int, side: int, *, field: str
) -> None:
    picture = codec.decode_photo(data, field=field)
    inner = side - 2  # within the hairline
    scale = inner / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # reducing_gap shrinks a very large picture coarsely first: twice as fast, no visible loss.
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    sheet.paste(picture, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
    frame = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(sheet).rectangle(frame, outline=_HAIRLINE)
