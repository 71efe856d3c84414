"""The pause between tries to reach a registry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiflow_servers.runtime.registration import backoff_s


@given(failures=st.integers(1, 10_000), fraction=st.floats(0, 1))
def test_the_pause_grows_to_a_second_and_never_vanishes(failures: int, fraction: float) -> None:
    pause_s = backoff_s(failures, lambda low, high: low + (high - low) * fraction)
    assert 0.05 <= pause_s <= 1.0
    assert pause_s <= 0.1 * 2 ** min(failures - 1, 10)


def test_pauses_differ_so_that_servers_do_not_come_all_at_once() -> None:
    assert len({backoff_s(5) for _ in range(20)}) > 10
