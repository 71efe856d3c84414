"""SVG from strangers: attacks are refused, drawings are drawn."""

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from unit.imaging import samples

from aiflow_sdk.errors import BadInputError
from aiflow_servers.imaging import svg
from aiflow_servers.imaging.codec import Format
from aiflow_servers.imaging.overlay import render_overlay


def document(body: str, attributes: str = "") -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{samples.WIDTH}" height="{samples.HEIGHT}" {attributes}>{body}</svg>'
    )


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


_BOMB = data_uri(samples.png_header(30_000, 30_000))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        pytest.param(document('<image href="/etc/hostname"/>'), "outside", id="a file"),
        pytest.param(document('<image href="file:///etc/hostname"/>'), "outside", id="a file URL"),
        pytest.param(document('<image xlink:href="../x.png"/>'), "outside", id="a relative path"),
        pytest.param(document('<image href="//10.0.0.1/x.png"/>'), "outside", id="an address"),
        pytest.param(document('<use href="other.svg#a"/>'), "outside", id="another document"),
        pytest.param(
            document('<filter id="f"><feImage href="x.png"/></filter>'), "<filter>", id="a filter"
        ),
        pytest.param(
            document('<image href="&#47;etc&#47;hostname"/>'), "outside", id="a path in disguise"
        ),
        pytest.param(
            document('<image href="data:image/svg+xml;base64,PHN2Zy8+"/>'),
            "outside",
            id="an SVG inside the SVG",
        ),
        pytest.param(document(f'<image href="{_BOMB}"/>'), "40 megapixels", id="a bomb inside"),
        pytest.param(
            document(f'<image href="{data_uri(samples.encoded(samples.photo())[:200])}"/>'),
            "damaged",
            id="a damaged picture inside",
        ),
        pytest.param(
            document('<image href="data:image/png;base64,%%%"/>'), "base64", id="broken base64"
        ),
        pytest.param(document("<style>@import 'x.css';</style>"), "@import", id="@import"),
        pytest.param(
            document("<style>@font-face{src:url(x.ttf)}</style>"), "url", id="a font from outside"
        ),
        pytest.param(document('<rect fill="url(x.svg#a)"/>'), "url", id="a paint from outside"),
        pytest.param(document("<rect style=\"fill:URL( 'x#a')\"/>"), "url", id="in a style"),
        pytest.param(document('<g filter="blur(99)"/>'), "'filter'", id="a filter by name"),
        pytest.param(document('<g style="filter:blur(99)"/>'), "filter", id="a filter in a style"),
        pytest.param(document("<script>1</script>"), "script", id="a script"),
        pytest.param(document("<foreignObject/>"), "foreignObject", id="foreign content"),
        pytest.param(document("", 'xml:base="file:///"'), "'base'", id="xml:base"),
        pytest.param(
            '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + document("&x;"),
            "DOCTYPE",
            id="an external entity",
        ),
        pytest.param(
            '<?xml-stylesheet href="x.css"?>' + document(""), "instruction", id="a style sheet"
        ),
        pytest.param(
            document('<pattern width="30000" height="30000"/>'), "<pattern>", id="a pattern"
        ),
        pytest.param(document("<g>" * 50_000 + "</g>" * 50_000), "complex", id="a deep document"),
        pytest.param(document("<g/>" * 30_000), "complex", id="very many elements"),
        pytest.param(
            document("<style>" + "rect{fill:red}" * 40_000 + "</style>"), "complex", id="many rules"
        ),
        pytest.param("<svg", "not well-formed", id="not XML"),
        pytest.param("", "not well-formed", id="nothing"),
        pytest.param("<html/>", "root", id="not SVG"),
        pytest.param(document(" " * 2**20), "1 MiB", id="over 1 MiB"),
        pytest.param(document("<text>नमस्ते</text>"), r"U\+", id="text without a font"),
    ],
)
def test_attacks_are_refused(attack: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said) as refused:
        svg.check(attack, field="svg")
    assert list(refused.value.violations) == ["svg"]


def test_a_drawing_that_multiplies_itself_is_refused() -> None:
    nested = "".join(
        f'<g id="g{n}">' + f'<use href="#g{n - 1}"/>' * 10 + "</g>" for n in range(1, 9)
    )
    bomb = document(f'<g id="g0"><rect width="1" height="1"/></g>{nested}<use href="#g8"/>')
    with pytest.raises(BadInputError, match="cannot be drawn"):
        render_overlay(samples.encoded(samples.photo()), bomb, min_long_side_px=0, form=Format.PNG)


def test_a_file_is_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(samples.encoded(Image.new("RGB", (9, 9), "blue")))
    drawn = svg.render(
        document(f'<image href="{secret.name}" width="99" height="99"/>'),
        size=(samples.WIDTH, samples.HEIGHT),
        field="svg",
    )
    assert np.asarray(drawn).max() == 0


def overlay(body: str, *, min_long_side_px: int = 0) -> npt.NDArray[np.uint8]:
    picture = render_overlay(
        samples.encoded(samples.photo()),
        document(body),
        min_long_side_px=min_long_side_px,
        form=Format.PNG,
    )
    return samples.decoded(picture.data)


@pytest.mark.parametrize(
    ("asked_px", "long_side_px"), [(0, 120), (50, 120), (120, 120), (121, 121), (1000, 1000)]
)
def test_the_photo_is_enlarged_but_never_reduced(asked_px: int, long_side_px: int) -> None:
    pixels = overlay('<rect width="60" height="90" fill="#0000ff"/>', min_long_side_px=asked_px)
    assert pixels.shape[1] == long_side_px
    assert pixels.shape[0] == round(long_side_px * 0.75)
    middle = pixels.shape[0] // 2
    assert tuple(pixels[middle, 2]) == (0, 0, 255)
    assert tuple(pixels[middle, -2]) == (0, 160, 0)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f'<image href="{data_uri(samples.encoded(samples.mask()))}"/>', id="image"),
        pytest.param('<text x="5" y="50">12 cm 咖啡</text>', id="text"),
        pytest.param(
            '<defs><linearGradient id="g"><stop/></linearGradient></defs>'
            '<rect width="50" height="50" style="fill:url(#g)"/>',
            id="a gradient of its own",
        ),
        pytest.param('<a href="https://example.com"><rect width="9" height="9"/></a>', id="link"),
        pytest.param(
            "<!-- a comment --><style>rect{fill:red}</style><rect width='9' height='9'/>",
            id="style",
        ),
    ],
)
def test_what_stands_for_itself_is_drawn(body: str) -> None:
    assert (overlay(body) != overlay("")).any()


def test_other_proportions_than_the_photo_are_refused() -> None:
    with pytest.raises(BadInputError, match="other proportions"):
        render_overlay(
            samples.encoded(samples.photo()),
            '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"/>',
            min_long_side_px=0,
            form=Format.PNG,
        )


def test_a_transparent_document_leaves_the_photo_as_it_is() -> None:
    assert (overlay("") == np.asarray(samples.photo())).all()


def test_answers_decode() -> None:
    for form in Format:
        picture = render_overlay(
            samples.encoded(samples.photo()), document(""), min_long_side_px=200, form=form
        )
        assert Image.open(io.BytesIO(picture.data)).size == (200, 150)
