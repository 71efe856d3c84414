"""`tokens=512,pixels=1048576`, from callers and backends that may write anything."""

from __future__ import annotations

import pytest

from aiflow_router.limits.units import DECLARABLE, USABLE, read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("tokens=512", {"tokens": 512}, id="one"),
        pytest.param("tokens=5, pixels=1.5", {"tokens": 5, "pixels": 1.5}, id="two, with a space"),
        pytest.param("gpu-ms=35", {"gpu-ms": 35}, id="a unit with a hyphen"),
        pytest.param("tokens=0", {"tokens": 0}, id="nothing of it"),
    ],
)
def test_what_can_be_read(text: str, expected: dict[str, float]) -> None:
    assert read(text, USABLE) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "is no number", id="nothing"),
        pytest.param("tokens", "is no number", id="no number"),
        pytest.param("tokens=-5", "is no number", id="a negative cost"),
        pytest.param("tokens=nan", "is no number", id="not a number"),
        pytest.param("tokens=inf", "is no number", id="for ever"),
        pytest.param("tokens=1e9", "is no number", id="with an exponent"),
        pytest.param("tokens=9999999999999999", "is no number", id="absurd"),
        pytest.param("tokens=1,tokens=2", "twice", id="one twice"),
        pytest.param("gpu-ms=5", "not one of pixels, tokens", id="what no caller knows"),
        pytest.param("tokens=1," * 200, "more than 512", id="endless"),
    ],
)
def test_what_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(text, DECLARABLE)
