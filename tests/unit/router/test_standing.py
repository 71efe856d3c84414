"""How an endpoint stands, as Explain tells it: one reason, and until when."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.router.loads import load

from aiflow_router.balancing.load import Changes, Load
from aiflow_router.balancing.pool import Pool, Preference
from aiflow_router.catalog.endpoint import State
from aiflow_router.explaining.explanation import Standing
from aiflow_router.explaining.standing import draining, standing

NOW_S = 1000.0


def stands(
    change: Callable[[Load], object], *, others: int = 1, preference: Preference | None = None
) -> Standing:
    one = load(1)
    change(one)
    loads = (one, *(load(2 + i) for i in range(others)))
    pool = Pool(loads, changes=Changes(), preference=preference)
    return standing(one, outlook=pool.outlook(NOW_S), now_s=NOW_S, expected_s=None)


def _eject(one: Load, *, ago_s: float = 10.0, trial: bool = False) -> None:
    one.eject(why="five faults", now_s=NOW_S - ago_s, for_s=30.0)
    one.trial = trial


def _cool(one: Load) -> None:
    one.refused(now_s=NOW_S - 0.25)


def _cool_again(one: Load) -> None:
    one.refused(now_s=NOW_S - 9)
    one.refused(now_s=NOW_S - 1)


def _fresh(one: Load) -> None:
    one.ramps_from_s = NOW_S - 4


@pytest.mark.parametrize(
    ("change", "state", "pickable", "left_s", "why"),
    [
        pytest.param(lambda _: None, State.READY, True, None, "", id="all is well"),
        pytest.param(_cool, State.UNREACHABLE, False, 0.75, "once", id="no connection"),
        pytest.param(
            _cool_again, State.UNREACHABLE, False, 1.0, "2 times in a row", id="nor the next time"
        ),
        pytest.param(
            lambda one: one.refused(now_s=NOW_S - 2),
            *(State.READY, True, None, "the next call that comes is the probe"),
            id="long enough ago to try again",
        ),
        pytest.param(
            lambda one: one.fails("its health check says NOT_SERVING"),
            *(State.UNHEALTHY, False, None, "its health check says NOT_SERVING"),
            id="a health check speaks against it",
        ),
        pytest.param(_eject, State.EJECTED, False, 20.0, "one call on trial", id="ejected"),
        pytest.param(
            lambda one: _eject(one, trial=True),
            *(State.EJECTED, False, 20.0, "its trial call is on the way"),
            id="on trial",
        ),
        pytest.param(
            lambda one: _eject(one, ago_s=31.0),
            *(State.EJECTED, True, None, "the next call is its trial"),
            id="its ejection is over",
        ),
    ],
)
def test_the_reason_is_told(
    change: Callable[[Load], object], state: State, pickable: bool, left_s: float | None, why: str
) -> None:
    told = stands(change)
    assert told.state is state
    assert told.pickable is pickable
    assert told.changes_in_s == (None if left_s is None else pytest.approx(left_s))
    assert why in told.why


def test_a_new_one_is_warming_up() -> None:
    told = stands(_fresh, preference=Preference(slow_start_s=10.0))
    assert told.warm == pytest.approx(0.4)
    assert told.why == "warming up: 40% of its share, all of it in 6.0 s"
    assert told.pickable


def test_where_none_is_fit_all_are_used() -> None:
    told = stands(_eject, others=0)
    assert told.state is State.EJECTED
    assert told.pickable
    assert "used anyway" in told.why


def test_one_of_another_zone_is_said_to_be() -> None:
    told = stands(lambda _: None, preference=Preference(zone="a"))
    assert 'not in the router\'s zone "a"' in told.why


def test_a_draining_one_gets_nothing_new() -> None:
    told = draining(load(1).endpoint, inflight=3)
    assert (told.state, told.pickable, told.inflight) == (State.DRAINING, False, 3)


def test_asking_picks_nobody_and_begins_no_trial() -> None:
    one = load(1)
    _eject(one, ago_s=31.0)
    pool = Pool((one, load(2)), changes=Changes())
    for _ in range(3):
        assert one in pool.outlook(NOW_S).due
    assert not one.trial
