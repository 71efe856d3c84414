"""Lines of several processes on one pipe stay whole."""

from __future__ import annotations

import select

from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.telemetry.access import pieces


@given(st.lists(st.integers(1, 900)), st.integers(1000, select.PIPE_BUF))
def test_each_write_is_of_whole_lines_and_small_enough_to_stay_together(
    lengths: list[int], at_most: int
) -> None:
    data = b"".join(b"x" * (length - 1) + b"\n" for length in lengths)
    found = list(pieces(data, at_most=at_most))
    assert b"".join(found) == data
    assert all(len(piece) <= at_most and piece.endswith(b"\n") for piece in found)


def test_a_line_that_is_longer_than_a_write_is_not_lost() -> None:
    assert b"".join(pieces(b"x" * 25 + b"\ny\n", at_most=10)) == b"x" * 25 + b"\ny\n"
