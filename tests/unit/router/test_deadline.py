"""What is passed on of a deadline, after gRPC's own rounding."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.forwarding.deadline import FAR_S, passed_on_s


def on_the_wire_s(left_s: float) -> float:
    """As gRPC's core rounds it: milliseconds, then up to three digits."""
    left_ms = math.ceil(left_s * 1000 + 1e-6)
    step_ms: int = max(1, 10 ** (len(str(left_ms)) - 3))
    return float(math.ceil(left_ms / step_ms) * step_ms / 1000)


@given(st.floats(min_value=1.0, max_value=1e6))
def test_what_is_on_the_wire_is_never_more_than_what_came_and_hardly_less(left_s: float) -> None:
    assert on_the_wire_s(passed_on_s(left_s)) <= left_s
    assert passed_on_s(left_s) > 0.985 * left_s


@pytest.mark.parametrize(
    ("left_s", "passed_s"),
    [
        pytest.param(0.25, 0.25, id="below a second nothing is taken"),
        pytest.param(1.009, 0.998 + 0.0, id="to a hundredth of a second"),
        pytest.param(12.345, 12.298, id="to a tenth from ten seconds"),
        pytest.param(3.6e11, FAR_S, id="no more than gRPC can say"),
    ],
)
def test_rows(left_s: float, passed_s: float) -> None:
    assert passed_on_s(left_s) == pytest.approx(passed_s, rel=0.011)
