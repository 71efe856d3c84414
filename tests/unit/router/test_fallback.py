"""Which failures send a call on, and how much time each candidate has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.routing.fallback import CONDITIONS, Fallback, condition, due_s
from aiflow_sdk import errors

EVERYTHING = Fallback(to=("b",), on=frozenset(CONDITIONS), deadline_share=0.6)


@pytest.mark.parametrize(
    ("error", "early", "expected"),
    [
        pytest.param(errors.NoEndpointError("x"), False, "no_endpoint", id="nobody serves it"),
        pytest.param(errors.UnavailableError("x"), False, "unavailable", id="it says unavailable"),
        pytest.param(
            errors.UnavailableError("x", reason="BACKEND_LOST"), False, "unavailable", id="it died"
        ),
        pytest.param(errors.DrainingError("x"), False, "unavailable", id="its server leaves"),
        pytest.param(errors.OverloadedError("x"), False, "overload", id="it is overloaded"),
        pytest.param(
            errors.DeadlineUnreachableError("x"), False, "overload", id="its queue is too long"
        ),
        pytest.param(
            errors.UnavailableError("x", reason="POOL_EXHAUSTED"),
            False,
            "pool_exhausted",
            id="the vendor's accounts are used up",
        ),
        pytest.param(
            errors.DeadlineExceededError("x"), True, "deadline_share", id="its share is used up"
        ),
        pytest.param(
            errors.DeadlineExceededError("x"), False, None, id="the whole time is used up"
        ),
        pytest.param(errors.BadInputError("x"), True, None, id="bad input"),
        pytest.param(
            errors.RefusedError("x", reason="CONTENT_REJECTED"), True, None, id="refused content"
        ),
        pytest.param(errors.ModelNotFoundError("x"), True, None, id="a name nobody knows"),
        pytest.param(errors.RateLimitedError("x"), True, None, id="the caller's limit"),
        pytest.param(errors.CallCancelledError("x"), True, None, id="a caller who left"),
        pytest.param(errors.AuthenticationError("x"), True, None, id="a wrong key"),
        pytest.param(errors.StreamBrokenError("x"), True, None, id="after the first byte"),
        pytest.param(errors.BackendError("x", code="INTERNAL"), True, None, id="a bug"),
    ],
)
def test_a_condition_is_read_off_the_error(
    error: errors.AiflowError, early: bool, expected: str | None
) -> None:
    assert condition(error.code, error.reason, early=early) == expected
    assert EVERYTHING.met(error.code, error.reason, early=early) == expected


def test_only_what_a_route_lists_sends_its_calls_on() -> None:
    listed = Fallback(to=("b",), on=frozenset({"overload"}))
    assert listed.met("UNAVAILABLE", "OVERLOADED", early=False) == "overload"
    assert listed.met("UNAVAILABLE", "NO_ENDPOINT", early=False) is None


@pytest.mark.parametrize(
    ("on", "expected"),
    [("overload", "overload"), ("deadline_share", "deadline_share"), ("unavailable", None)],
)
def test_a_queue_past_the_share_is_met_by_either_condition(on: str, expected: str | None) -> None:
    listed = Fallback(to=("b",), on=frozenset({on}), deadline_share=0.5)  # type: ignore[arg-type]
    assert listed.met("UNAVAILABLE", "DEADLINE_UNREACHABLE", early=True) == expected


@pytest.mark.parametrize(
    ("now_s", "followers", "expected_s"),
    [
        pytest.param(0.0, 1, 6.0, id="of two the first has the share"),
        pytest.param(0.0, 2, 3.0, id="of three the first has half of it"),
        pytest.param(3.0, 1, 6.0, id="and the second the other half"),
        pytest.param(1.0, 1, 6.0, id="what a failure leaves goes to the next"),
        pytest.param(6.0, 0, 10.0, id="the last one has what is left of the whole"),
        pytest.param(0.0, 0, 10.0, id="alone it has all"),
        pytest.param(7.0, 1, 7.0, id="late it has nothing, but another follows"),
    ],
)
def test_the_share_is_parted_among_those_before_the_last(
    now_s: float, followers: int, expected_s: float
) -> None:
    due = due_s(now_s=now_s, started_s=0.0, deadline_s=10.0, share=0.6, followers=followers)
    assert due == pytest.approx(expected_s)


def test_without_a_share_each_has_what_is_left() -> None:
    assert due_s(now_s=1, started_s=0, deadline_s=10, share=None, followers=3) == 10


@given(
    st.floats(0.01, 0.99),
    st.floats(0.001, 1000),
    st.lists(st.floats(0, 1), min_size=1, max_size=7),
)
def test_however_they_use_their_parts_the_last_has_its_own(
    share: float, whole_s: float, used: list[float]
) -> None:
    now_s = 0.0
    for at, part in enumerate(used):
        followers = len(used) - at
        due = due_s(
            now_s=now_s, started_s=0.0, deadline_s=whole_s, share=share, followers=followers
        )
        assert now_s <= due <= share * whole_s + 1e-9 * whole_s
        now_s += part * (due - now_s)
    left_s = whole_s - now_s
    assert left_s >= (1 - share) * whole_s * (1 - 1e-9)
