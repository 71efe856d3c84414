"""The adaptive limit: bounded, unmoved by a lack of traffic, right about a backend's capacity."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.overloaded import Backend, Seen

from aiflow_router.limits.concurrency import BASELINE_ANSWERS, End, Gradient, next_limit
from aiflow_router.limits.gate import Gate
from aiflow_router.limits.overload import Overload, gates


@pytest.mark.parametrize(
    ("limit", "recent_s", "dropped", "expected"),
    [
        pytest.param(16, 0.100, 0.0, 16 * 1.25 + 4, id="unhindered it grows by buffer and root"),
        pytest.param(
            16, 0.125, 0.0, 16 + 4, id="as slow as the buffer allows it grows by its root"
        ),
        pytest.param(16, 0.250, 0.0, 8 + 4, id="twice that slow it halves, but for the root"),
        pytest.param(16, 9.000, 0.0, 8 + 4, id="never more than by half in one step"),
        pytest.param(16, 0.001, 0.0, 32 + 4, id="never more than double in one step"),
        pytest.param(16, 0.100, 0.25, 12, id="what was dropped shrinks it, however fast the rest"),
        pytest.param(16, 0.250, 0.1, 8, id="the slower of the two tells"),
        pytest.param(16, 0.000, 1.0, 8, id="when nothing was answered it halves"),
    ],
)
def test_a_step(limit: float, recent_s: float, dropped: float, expected: float) -> None:
    found = next_limit(limit, baseline_s=0.1, recent_s=recent_s, dropped=dropped)
    assert found == pytest.approx(expected)


def measured(*, lowest: int = 3, highest: int = 50) -> Gradient:
    """A limit that knows that an answer takes 0.1 s, at 1 s."""
    gradient = Gradient(lowest=lowest, highest=highest, rng=random.Random(1))
    for n in range(BASELINE_ANSWERS):
        gradient.ended(End.ANSWERED, 0.1, 0.1 * (n + 1), 1)
    assert gradient.baseline_s == pytest.approx(0.1)
    return gradient


def full(gradient: Gradient, end: End, took_s: float, *, since_s: float, calls: int = 40) -> None:
    """Calls end with the whole limit in use, 0.05 s apart."""
    for n in range(calls):
        gradient.ended(end, took_s, since_s + n * 0.05, gradient.current)


def test_it_starts_at_its_lowest_and_grows_while_it_is_used() -> None:
    gradient = measured()
    assert gradient.current == 3
    full(gradient, End.ANSWERED, 0.1, since_s=1.0)
    assert gradient.current > 10


def test_it_grows_to_its_highest_and_shrinks_to_its_lowest() -> None:
    gradient = measured(lowest=2, highest=9)
    full(gradient, End.ANSWERED, 0.1, since_s=1.0, calls=100)
    assert gradient.current == 9
    full(gradient, End.TIMED_OUT, 0.5, since_s=10.0, calls=100)
    assert gradient.current == 2


@pytest.mark.parametrize(
    ("end", "took_s", "shrinks"),
    [
        pytest.param(End.ANSWERED, 0.5, True, id="slow answers"),
        pytest.param(End.TIMED_OUT, 0.5, True, id="timeouts"),
        pytest.param(End.REFUSED, 0.0, True, id="refusals by the backend, however fast"),
        pytest.param(End.TIMED_OUT, 0.01, False, id="not: deadlines shorter than any answer takes"),
        pytest.param(End.OTHER, 0.5, False, id="not: cancelled calls and broken connections"),
    ],
)
def test_what_shrinks_it(end: End, took_s: float, shrinks: bool) -> None:
    gradient = measured()
    full(gradient, End.ANSWERED, 0.1, since_s=1.0)
    before = gradient.current
    full(gradient, end, took_s, since_s=4.0)
    assert (gradient.current < before) == shrinks


def test_a_cold_backend_is_forgotten_with_the_next_ten_answers() -> None:
    gradient = Gradient(lowest=3, highest=50, rng=random.Random(1))
    for n in range(30):
        gradient.ended(End.ANSWERED, 0.1 if n else 30.0, 30 + 0.05 * n, 3)
    assert gradient.baseline_s == pytest.approx(0.1)


def test_the_baseline_is_looked_at_again_after_a_minute_of_load() -> None:
    gradient = measured()
    full(gradient, End.ANSWERED, 0.1, since_s=1.0)
    wide = gradient.current
    full(gradient, End.ANSWERED, 0.12, since_s=70.0, calls=11)
    assert gradient.current == 3 < wide
    gradient.ended(End.ANSWERED, 9.0, 72.0, 2)  # It began before, among many.
    for n in range(BASELINE_ANSWERS):
        gradient.ended(End.ANSWERED, 0.2, 73.0 + n, 3)
    assert gradient.baseline_s == pytest.approx(0.2)
    assert gradient.current >= wide


ENDS = st.tuples(
    st.sampled_from(list(End)), st.floats(0, 100), st.floats(0, 100), st.integers(1, 200)
)


@given(st.lists(ENDS), st.integers(1, 20), st.integers(0, 20))
def test_it_stays_within_its_bounds(
    ends: list[tuple[End, float, float, int]], lowest: int, more: int
) -> None:
    gradient, now_s = measured(lowest=lowest, highest=lowest + more), 1.0
    for end, took_s, after_s, inflight in ends:
        now_s += after_s
        gradient.ended(end, took_s, now_s, inflight)
        assert lowest <= gradient.current <= lowest + more


@given(st.lists(ENDS, min_size=1))
def test_a_lack_of_traffic_never_shrinks_it(ends: list[tuple[End, float, float, int]]) -> None:
    gradient, now_s = measured(), 10.0
    full(gradient, End.ANSWERED, 0.1, since_s=1.0)
    before = gradient.current
    for end, took_s, after_s, inflight in ends:
        now_s += after_s
        gradient.ended(end, took_s, now_s, 1 + inflight % ((before - 1) // 2))
        assert gradient.current >= before


def simulated(
    gate: Gate,
    *,
    slots: Callable[[float], int],
    took_s: Callable[[random.Random], float],
    arrivals: float,
    until_s: float,
    deadline_s: float = 2.0,
) -> Seen:
    backend = Backend(
        gate=gate, slots=slots, took_s=took_s, deadline_s=deadline_s, rng=random.Random(1)
    )
    return backend.run(arrivals=lambda _: arrivals, until_s=until_s)


def adaptive() -> Gate:
    overload = Overload(limit=None, lowest=3, highest=1024, queue=64, mode="enforce")
    return gates(overload, random.Random(1)).unary


def unlimited() -> Gate:
    return Gate(limit=10**9, queue=0, rng=random.Random(1))


@pytest.mark.parametrize("distribution", ["equal", "exponential"])
@pytest.mark.parametrize("slots", [8, 32])
def test_three_times_overloaded_it_finds_the_capacity_and_stays_quick(
    slots: int, distribution: str
) -> None:
    service_s, until_s, settled_s = 0.05, 30.0, 10.0
    rate = slots / service_s
    took_s: Callable[[random.Random], float] = (
        (lambda _: service_s)
        if distribution == "equal"
        else (lambda r: r.expovariate(1 / service_s))
    )
    seen, without = (
        simulated(gate, slots=lambda _: slots, took_s=took_s, arrivals=3 * rate, until_s=until_s)
        for gate in (adaptive(), unlimited())
    )
    limits = [limit for at_s, limit in seen.limits if at_s > settled_s]
    assert slots <= sorted(limits)[len(limits) // 2] <= 2.5 * slots
    at_backend = [s for at_s, s in seen.at_backend_s if at_s > settled_s]
    assert sum(at_backend) / len(at_backend) < 2.5 * service_s
    window_s = until_s - settled_s
    assert seen.good(settled_s) > 0.95 * rate * window_s
    assert without.good(settled_s) < 0.05 * rate * window_s


def test_it_follows_a_backend_that_loses_and_regains_slots() -> None:
    seen = simulated(
        adaptive(),
        slots=lambda now_s: 4 if 10 < now_s < 25 else 16,
        took_s=lambda _: 0.05,
        arrivals=640,
        until_s=40,
    )

    def median(since_s: float, until_s: float) -> int:
        limits = sorted(limit for at_s, limit in seen.limits if since_s < at_s < until_s)
        return limits[len(limits) // 2]

    assert 16 <= median(5, 10) <= 32
    assert 4 <= median(15, 25) <= 12
    assert 16 <= median(35, 40) <= 32


def test_below_capacity_nothing_is_shed_once_it_is_measured() -> None:
    seen = simulated(
        adaptive(), slots=lambda _: 16, took_s=lambda _: 0.05, arrivals=200, until_s=30
    )
    assert seen.refused < 0.01 * len(seen.answered)
    assert not seen.late
