"""SVG from strangers: what it may hold, and its rendering by resvg.

A document may refer to nothing outside itself: not to files, not to addresses, not by entities. It
may carry PNG, JPEG and WebP pictures inside as data URIs, within the limits for any picture.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import resvg_py
from PIL import Image

from aiflow_servers.imaging import codec, text
from aiflow_servers.imaging.violations import bad

MAX_BYTES = 1024 * 1024

_SVG = "{http://www.w3.org/2000/svg}"
_DATA_URI = re.compile(r"data:image/(?:png|jpe?g|webp);base64,(.*)", re.DOTALL | re.IGNORECASE)
_URL = re.compile(r"url\s*\(\s*['\"]?\s*(.)", re.IGNORECASE)
# A backslash could spell any of the others; no drawing needs one.
_REFUSED_CSS = re.compile(r"@import|@font-face|\\|image-set|filter\s*:", re.IGNORECASE)
# What a drawing is made of. Left out are scripts and foreign content, and filters and patterns: a
# few bytes of those can ask the renderer for minutes of work or all of the memory.
_ELEMENTS = frozenset(
    {
        *("svg", "g", "defs", "symbol", "use", "switch", "title", "desc", "metadata", "style", "a"),
        *("image", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
        *("text", "tspan", "textPath", "linearGradient", "radialGradient", "stop"),
        *("clipPath", "mask", "marker"),
    }
)
# The renderer takes a call a level, and time for each style rule at each element.
_MAX_DEPTH = 32
_MAX_ELEMENTS = 20_000
_MAX_RULES = 200


def check(document: str, *, field: str) -> None:
    """Refuses a document that is too large, malformed, or refers to anything outside itself.

    Raises:
        BadInputError: says what stands in the way.
    """
    size = len(document.encode())
    if size > MAX_BYTES:
        raise bad(field, f"has {size / 2**20:.1f} MiB; at most 1 MiB is taken")
    if re.search(r"<!(DOCTYPE|ENTITY)", document, re.IGNORECASE):
        raise bad(field, "has a DOCTYPE; entities are refused, write their text instead")
    if re.search(r"<\?(?!xml[\s?])", document):
        raise bad(field, "has a processing instruction; style sheets outside are refused")
    try:
        # No entity can be declared without the DOCTYPE refused above.
        root = ET.fromstring(document.encode(), parser=ET.XMLParser(encoding="utf-8"))  # noqa: S314
    except (ET.ParseError, ValueError) as error:
        raise bad(field, f"is not well-formed XML: {error}") from None
    if root.tag != f"{_SVG}svg":
        raise bad(field, 'must have an <svg xmlns="http://www.w3.org/2000/svg"> root')
    pixels = elements = rules = 0
    waiting = [(root, 1)]
    while waiting:
        element, depth = waiting.pop()
        waiting += [(child, depth + 1) for child in element]
        elements += 1
        rules += (element.text or "").count("{")
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS or rules > _MAX_RULES:
            raise bad(
                field,
                f"is too complex: at most {_MAX_DEPTH} levels, {_MAX_ELEMENTS} elements and "
                f"{_MAX_RULES} style rules are drawn",
            )
        pixels += _check_element(element, field=field)
        if pixels > codec.MAX_PIXELS:
            raise bad(field, "carries pictures of more than 40 megapixels together")
    text.check_drawable(_drawn_text(root), field=field)


def render(document: str, *, size: tuple[int, int], field: str) -> Image.Image:
    """The checked document at exactly `size` (width, height), as RGBA.

    Raises:
        BadInputError: it cannot be drawn, or its own proportions are others than those of `size`.
    """
    width, height = size
    faces = text.faces_of(document) | {text.INTER}
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=document,
            width=width,
            height=height,
            skip_system_fonts=True,
            # Only fonts that are needed: the CJK collection takes a moment to load.
            font_files=[face.path for face in faces],
            font_family=text.FAMILY,
            sans_serif_family=text.FAMILY,
            serif_family=text.FAMILY,
            monospace_family=text.FAMILY,
            cursive_family=text.FAMILY,
            fantasy_family=text.FAMILY,
        )
    except ValueError as error:
        raise bad(field, f"cannot be drawn: {error}") from error
    drawn = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA")
    if abs(drawn.width - width) > 1 or abs(drawn.height - height) > 1:
        raise bad(
            field,
            "has other proportions than the photo: drawn as large as fits it takes "
            f"{drawn.width} x {drawn.height} of {width} x {height} pixels",
        )
    if drawn.size != size:  # its proportions, rounded to whole pixels
        drawn = drawn.resize(size, Image.Resampling.BILINEAR)
    return drawn


def _check_element(element: ET.Element, *, field: str) -> int:
    """Refuses what points outside; returns the pixels of a picture carried inside."""
    name = _local(element.tag)
    # What is of another namespace, such as an editor's notes, is not drawn.
    if element.tag.startswith(_SVG) and name not in _ELEMENTS:
        raise bad(field, f"has a <{name}> element; drawn are {', '.join(sorted(_ELEMENTS))}")
    pixels = 0
    for attribute, value in element.attrib.items():
        if _local(attribute) in ("href", "src"):
            pixels += _check_reference(name, value.strip(), field=field)
        elif _local(attribute) in ("base", "filter"):
            raise bad(field, f"has an attribute {_local(attribute)!r}, which is refused")
        else:
            _check_css(value, field=field)
    if name == "style":
        _check_css("".join(element.itertext()), field=field)
    return pixels


def _check_reference(element: str, target: str, *, field: str) -> int:
    if target.startswith("#") or element == "a":  # a link draws nothing
        return 0
    carried = _DATA_URI.fullmatch(target)
    if not carried:
        raise bad(
            field,
            f"<{element}> refers to {target[:60]!r}; references to the outside are refused, carry "
            'a picture inside as "data:image/png;base64,..."',
        )
    try:
        data = base64.b64decode("".join(carried[1].split()), validate=True)
    except binascii.Error as error:
        raise bad(field, f"<{element}> carries a picture that is not base64: {error}") from None
    # Decoded here, because the renderer leaves out a damaged picture without a word.
    picture = codec.decode_photo(data, field=field)
    return picture.width * picture.height


def _check_css(value: str, *, field: str) -> None:
    if any(found != "#" for found in _URL.findall(value)):
        raise bad(field, "has a url() to the outside, which is refused; use url(#id)")
    refused = _REFUSED_CSS.search(value)
    if refused:
        raise bad(field, f"has {refused[0]!r} in an attribute or style, which is refused")


def _drawn_text(root: ET.Element) -> Iterator[str]:
    for element in root.iter(f"{_SVG}text"):
        for piece in element.itertext():
            yield from (char for char in piece if not char.isspace())


def _local(name: str) -> str:
    return name.rpartition("}")[2]
