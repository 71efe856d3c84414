"""The guard stops what is worse, soon, and what is as good, never."""

import random

import pytest

from aiflow_router.routing.guard import MAX_CALLS, Guard, Tally, errors_above, wilson, worse

GUARD = Guard(errors=0.02, latency=1.5, after=50)


def tally(calls: int, failed: int, took_s: float = 0.01) -> Tally:
    found = Tally()
    for number in range(calls):
        found.ended(well=number >= failed, took_s=took_s)
    return found


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        pytest.param(tally(49, 49), tally(500, 0), None, id="too few calls on the new side"),
        pytest.param(tally(500, 500), tally(49, 0), None, id="too few calls on the old side"),
        pytest.param(tally(50, 50), tally(50, 0), "errors", id="all fail of the new side"),
        pytest.param(tally(50, 50), tally(50, 50), None, id="all fail of both"),
        pytest.param(tally(50, 4), tally(450, 0), None, id="a few of few calls may be chance"),
        pytest.param(tally(400, 40), tally(400, 0), "errors", id="of many it is not"),
        pytest.param(tally(1000, 30), tally(1000, 10), None, id="within the bound"),
        pytest.param(tally(50, 0, 0.05), tally(50, 0, 0.01), "latency", id="five times slower"),
        pytest.param(tally(500, 0, 0.014), tally(500, 0, 0.01), None, id="within the bound"),
        pytest.param(tally(90, 45, 0.5), tally(90, 45, 0.01), None, id="too few answers to time"),
        pytest.param(tally(500, 0, 0.01), tally(500, 0, 0.05), None, id="faster"),
    ],
)
def test_what_is_worse_beyond_the_bound_is_stopped(
    new: Tally, old: Tally, expected: str | None
) -> None:
    stop = worse(new, old, GUARD)
    assert (None if stop is None else stop.reason) == expected


def test_what_is_not_to_be_judged_is_not() -> None:
    slow, quick, broken = tally(500, 0, 9.0), tally(500, 0), tally(500, 500)
    assert worse(slow, quick, Guard(errors=0.0)) is None
    assert worse(broken, quick, Guard(latency=1.0)) is None


def test_bounds_are_wilsons() -> None:
    # By hand: z = 3, 10 of 100: (0.1 + 9/200 -+ 3 sqrt(0.0009 + 9/40000)) / 1.09.
    assert wilson(10, 100) == pytest.approx((0.04072, 0.22533), abs=1e-4)
    assert wilson(0, 50)[0] == 0
    assert wilson(50, 50)[1] == pytest.approx(1)


def test_the_past_counts_less_and_less() -> None:
    found = tally(20 * MAX_CALLS, 0)
    for _ in range(MAX_CALLS):
        found.ended(well=False)
    assert found.calls < MAX_CALLS
    assert found.failed / found.calls > 0.5


def runs(error: tuple[float, float], slower: float, *, rounds: int, calls: int) -> list[int | None]:
    """After how many calls each of `rounds` canaries was stopped; a tenth of them were its own."""
    rng = random.Random(7)
    found: list[int | None] = []
    for _ in range(rounds):
        old, new, stopped = Tally(), Tally(), None
        for number in range(calls):
            is_new = rng.random() < 0.1
            side, chance = (new, error[1]) if is_new else (old, error[0])
            took_s = 0.01 * rng.lognormvariate(0, 0.5) * (slower if is_new else 1)
            side.ended(well=rng.random() >= chance, took_s=took_s)
            if is_new and worse(new, old, GUARD) is not None:
                stopped = number
                break
        found.append(stopped)
    return found


@pytest.mark.parametrize("chance", [0.0, 0.01, 0.2])
def test_equal_sides_are_left_alone(chance: float) -> None:
    assert runs((chance, chance), 1.0, rounds=30, calls=3000) == [None] * 30


@pytest.mark.parametrize(
    ("error", "slower"),
    [
        pytest.param((0.01, 0.3), 1.0, id="a third of the new side's calls fail"),
        pytest.param((0.0, 0.0), 3.0, id="the new side takes three times as long"),
    ],
)
def test_worse_sides_are_stopped_soon(error: tuple[float, float], slower: float) -> None:
    found = runs(error, slower, rounds=30, calls=3000)
    assert all(stopped is not None for stopped in found)


def test_the_margin_shrinks_with_what_is_known() -> None:
    few, many = tally(100, 10), tally(1000, 100)
    assert errors_above(few, tally(100, 0)) < errors_above(many, tally(1000, 0)) < 0.1
