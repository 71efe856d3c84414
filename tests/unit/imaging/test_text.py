"""Typesetting: which characters can be set, and how a title is broken and sized."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_sdk.errors import BadInputError
from aiflow_servers.imaging import text


@pytest.mark.parametrize(
    "words", ["Crème brûlée № 5", "Ελληνικά Русский", "咖啡杯 コーヒー 커피", "12½ cm ±5 °C €"]
)
def test_these_scripts_can_be_set(words: str) -> None:
    text.check_drawable(words, field="title")


@pytest.mark.parametrize("words", ["שלום", "नमस्ते", "สวัสดี", "\U0001f600", "\ufffe"])
def test_what_no_font_has_is_refused_by_character(words: str) -> None:
    with pytest.raises(BadInputError, match=rf"U\+{ord(min(words)):04X}"):
        text.check_drawable(words, field="title")


def fit(words: str, *, width: float = 500, smallest_px: float = 5) -> tuple[list[str], float]:
    fitted = text.fit_lines(words, width=width, lines=2, largest_px=40, smallest_px=smallest_px)
    assert fitted is not None
    return fitted


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        pytest.param("Espresso cup", ["Espresso cup"], id="short stays on one line"),
        pytest.param(
            "Red espresso cup with a saucer made of stoneware",
            ["Red espresso cup with a", "saucer made of stoneware"],
            id="long is broken evenly at a space",
        ),
        pytest.param(
            "手工陶瓷咖啡杯配碟子和小勺套装礼盒装送礼佳品包邮",
            ["手工陶瓷咖啡杯配碟子和小", "勺套装礼盒装送礼佳品包邮"],
            id="Chinese is broken between signs",
        ),
    ],
)
def test_lines(words: str, lines: list[str]) -> None:
    assert fit(words)[0] == lines


@given(st.text(st.sampled_from("abcWi -咖啡"), min_size=1, max_size=60).map(text.normalise))
def test_every_line_fits_and_nothing_is_lost(words: str) -> None:
    if not words:
        return
    lines, size = fit(words, smallest_px=0)
    assert 1 <= len(lines) <= 2
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert size <= 40
    assert all(text.width_px(line, size) <= 500 * 1.02 for line in lines)


def test_what_would_be_too_small_is_not_set() -> None:
    assert text.fit_lines("W" * 80, width=100, lines=2, largest_px=40, smallest_px=9) is None
