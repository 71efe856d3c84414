"""An SVG drawn over a photo."""

from __future__ import annotations

from PIL import Image

from aiflow_servers.imaging import codec, svg
from aiflow_servers.imaging.codec import Format, Picture

MAX_LONG_SIDE_PX = 8192


def render_overlay(photo: bytes, document: str, *, min_long_side_px: int, form: Format) -> Picture:
    """Draws `document` over the whole photo, enlarged first so that thin lines stay crisp.

    Args:
        photo: encoded.
        document: SVG with the photo's proportions.
        min_long_side_px: what the longer side of the answer has at least; the photo is never
            made smaller.
        form: how the answer is encoded.

    Raises:
        BadInputError: the photo or the SVG cannot be taken; see `codec` and `svg`.
    """
    svg.check(document, field="svg")
    image = codec.decode_photo(photo, field="photo")
    grow = min_long_side_px / max(image.size)
    if grow > 1:
        profile = dict(image.info)
        size = (max(1, round(image.width * grow)), max(1, round(image.height * grow)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        image.info = profile
    drawn = svg.render(document, size=image.size, field="svg")
    image.paste(drawn, mask=drawn.getchannel("A"))
    return codec.encode(image, form, field="format")
