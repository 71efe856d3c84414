"""When Consul is asked, and what for: the index, the waits, the paces; and what is told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.catalog.consul_watch import (
    LONGEST_BACKOFF_S,
    SPREAD,
    Book,
    Pace,
    backoff_s,
    next_index,
    wait_of,
)
from aiflow_sdk.consul import ConsulAwayError, ConsulFailedError


@pytest.mark.parametrize(
    ("before", "got", "expected"),
    [
        pytest.param(0, 7, 7, id="the first answer"),
        pytest.param(7, 9, 9, id="a change"),
        pytest.param(9, 9, 9, id="no change"),
        pytest.param(9, 8, 0, id="backwards: ask anew, without waiting"),
        pytest.param(9, 0, 0, id="backwards to nothing"),
        pytest.param(0, 0, 1, id="an index of 0 would not wait"),
        pytest.param(0, -3, 0, id="an index that cannot be"),
    ],
)
def test_the_index_of_the_next_question(before: int, got: int, expected: int) -> None:
    assert next_index(before, got) == expected


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_backoff_is_never_longer_than_the_longest(failures: int, draw: float) -> None:
    assert 0 <= backoff_s(failures, draw) <= LONGEST_BACKOFF_S


def test_backoffs_become_longer() -> None:
    bounds = [backoff_s(failures, 1.0) for failures in range(1, 9)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.5
    assert bounds[-1] == LONGEST_BACKOFF_S


@given(st.text(min_size=1), st.integers(1, 5000), st.integers(1, 500))
def test_each_watch_has_its_turn_within_the_wait(path: str, watches: int, connections: int) -> None:
    wait_s = wait_of(path, 10, watches=watches, connections=connections)
    rounds = max(1.0, watches / connections)
    assert 10 * (1 - SPREAD) <= wait_s * rounds <= 10.000001
    assert wait_s == wait_of(path, 10, watches=watches, connections=connections)


def test_watches_do_not_end_their_waits_together() -> None:
    waits_s = {wait_of(f"/v1/x/{i}", 10, watches=1, connections=9) for i in range(50)}
    assert len(waits_s) == 50


@given(
    st.floats(0.1, 1000),
    st.integers(1, 100),
    st.lists(st.floats(0, 1), min_size=1, max_size=200),
)
def test_never_more_places_than_burst_and_rate(
    per_s: float, burst: int, gaps_s: list[float]
) -> None:
    pace = Pace(per_s=per_s, burst=burst)
    now_s, places_s = 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        waits_s = pace.wait_s(now_s)
        assert pace.take(now_s) == waits_s
        now_s += waits_s
        places_s.append(now_s)
    for first, began_s in enumerate(places_s):
        for last in range(first, len(places_s)):
            granted = last - first + 1
            allowed = burst + per_s * (places_s[last] - began_s)
            assert granted <= allowed + 1e-6 * max(1.0, allowed)


def test_who_was_quiet_is_answered_at_once() -> None:
    pace = Pace(per_s=5, burst=3)
    assert [pace.take(100.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.2])
    assert pace.wait_s(1000.0) == 0


class Told:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.failures = 0
        self.book = Book(clock=lambda: self.now_s, not_heard=self.fail)

    def fail(self) -> None:
        self.failures += 1


def test_the_view_is_as_old_as_its_oldest_part() -> None:
    told = Told()
    book = told.book
    assert book.age_s() == 0
    book.begins("list")
    book.begins("a", ago_s=3)
    assert (book.age_s(), book.watches) == (3, 2)
    told.now_s += 10
    book.answered("list")
    assert book.age_s() == 13
    book.answered("a", ago_s=2)  # By a server that had not heard of its leader for so long.
    assert book.age_s() == 2
    book.answered("a")
    assert book.age_s() == 0
    told.now_s += 1
    book.answered("list")
    book.ends("a")
    assert (book.age_s(), book.watches) == (0, 1)


def test_it_fails_until_every_watch_is_answered_again() -> None:
    told = Told()
    book = told.book
    for path in ("list", "a"):
        book.begins(path)
        book.failed(path, ConsulAwayError(f"{path} away"))
    book.failed("list", ConsulFailedError("list 500"))
    assert book.failing == "list 500"
    assert book.errors == {"away": 2, "failed": 1}
    assert told.failures == 3
    book.answered("list")
    assert book.failing == "a away"
    book.answered("a")
    assert book.failing == ""


def test_bad_news_is_in_doubt_while_a_watch_fails_and_for_the_grace_after_it() -> None:
    told = Told()
    book = told.book
    for path in ("list", "a"):
        book.begins(path)
    assert not book.in_doubt(4)
    book.failed("list", ConsulAwayError("away"))
    told.now_s += 60  # It waited, as it does after many failures, or its next question hung.
    assert book.in_doubt(4)
    book.answered("a")
    assert book.in_doubt(4)
    book.answered("list")
    told.now_s += 3.9
    assert book.in_doubt(4)
    book.answered("list")
    told.now_s += 0.2
    assert not book.in_doubt(4)
    book.went_back("a", before=7, got=2)
    assert book.in_doubt(4)


def test_what_is_watched_no_more_does_not_fail() -> None:
    told = Told()
    told.book.begins("a")
    told.book.failed("a", ConsulAwayError("away"))
    told.book.ends("a")
    assert told.book.failing == ""
