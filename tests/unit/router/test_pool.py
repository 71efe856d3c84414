"""Who may be picked: the fit ones, those of the own zone first, new ones a little at a time."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.router.loads import Asking, load

from aiflow_router.balancing.load import Changes, Load
from aiflow_router.balancing.pick import PICKS, STEADY
from aiflow_router.balancing.pool import Pool, Preference, choices
from aiflow_router.balancing.slow_start import factor, next_step_s
from aiflow_router.balancing.zone import local_part


def fleet(zones: str, *, weights: dict[int, int] | None = None) -> list[Load]:
    """An endpoint for each letter, which is its zone."""
    return [load(n, zone=zone, weight=(weights or {}).get(n, 1)) for n, zone in enumerate(zones)]


def shared(loads: list[Load], clock: Callable[[], float] = lambda: 0.0) -> Changes:
    changes = Changes(clock=clock)
    for item in loads:
        item.changes = changes
    return changes


OUT: dict[str, Callable[[Load], None]] = {
    "fit": lambda item: None,
    "cooling off": lambda item: item.refused(now_s=0.0),
    "unhealthy": lambda item: item.fails("it says so"),
    "ejected": lambda item: item.eject(why="faults", now_s=0.0, for_s=30.0),
}


@pytest.mark.parametrize("name", PICKS)
@given(
    endpoints=st.lists(
        st.tuples(
            st.sampled_from(sorted(OUT)), st.sampled_from("ab"), st.integers(1, 5), st.booleans()
        ),
        min_size=1,
        max_size=6,
    ),
    zone=st.sampled_from(["", "a", "c"]),
    seed=st.integers(0, 99),
)
def test_every_fit_endpoint_is_picked_and_no_other_unless_there_is_none(
    name: str, endpoints: list[tuple[str, str, int, bool]], zone: str, seed: int
) -> None:
    loads = [load(n, zone=at, weight=weight) for n, (_, at, weight, _) in enumerate(endpoints)]
    pool = Pool(
        loads,
        changes=shared(loads),
        preference=Preference(zone=zone, slow_start_s=10.0),
        steady=name in STEADY,
    )
    for item, (state, _, _, new) in zip(loads, endpoints, strict=True):
        OUT[state](item)
        item.ramps_from_s = -1.0 if new else float("-inf")
    fit = [item for item, (state, *_) in zip(loads, endpoints, strict=True) if state == "fit"]
    expected = fit or loads
    if local_part(expected, zone=zone, zones=len({at for _, at, *_ in endpoints})) == 1.0:
        expected = [item for item in expected if item.endpoint.zone == zone]
    asking, rng, picked = Asking(), random.Random(seed), set[Load]()
    for number in range(20_000):
        asking.session = f"{seed}-{number}"
        one = PICKS[name](pool.open(0.5, rng, asking), rng, 0.5, asking)
        one.inflight += 1
        picked.add(one)
        if len(picked) >= len(expected):
            break
    assert picked == set(expected)
    assert pool.panics(0.5) == (not fit)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(sorted(OUT)), st.floats(0, 40))))
def test_a_pool_knows_at_once_what_changed(changes: list[tuple[int, str, float]]) -> None:
    """As one that is made anew for each call."""
    loads, now_s = fleet("aaaaa"), 0.0
    pool = Pool(loads, changes=shared(loads, lambda: now_s))
    rng, asking = random.Random(1), Asking()

    def ready(one: Load) -> bool:
        return one.cool_until_s <= now_s and not one.unhealthy

    for number, state, wait_s in changes:
        item = loads[number]
        if state == "fit":
            item.connected()
            item.passes()
            item.readmit()
        else:
            OUT[state](item)
        for _ in range(2):
            due = [
                one for one in loads if one.ejected and one.ejected_until_s <= now_s and ready(one)
            ]
            for _ in due:
                assert pool.open(now_s, rng, asking)[0] in due
            fit = [one for one in loads if one.fit(now_s)]
            assert list(pool.open(now_s, rng, asking)) == (fit or loads)
            now_s += wait_s


def test_an_endpoint_whose_ejection_is_over_gets_one_call_until_that_has_ended() -> None:
    now_s = 0.0
    loads = fleet("aa")
    pool = Pool(loads, changes=shared(loads, lambda: now_s))
    rng, asking = random.Random(1), Asking()
    loads[0].eject(why="faults", now_s=now_s, for_s=30.0)
    assert list(pool.open(29.0, rng, asking)) == [loads[1]]
    assert list(pool.open(31.0, rng, Asking(tried=[loads[1]]))) != []  # A retry is no trial.
    assert not loads[0].trial
    assert list(pool.open(31.0, rng, asking)) == [loads[0]]
    assert list(pool.open(31.0, rng, asking)) == [loads[1]]
    assert list(pool.open(41.0, rng, asking)) == [loads[0]]  # Nothing was heard of it.
    loads[0].readmit()
    assert set(pool.open(41.0, rng, asking)) == set(loads)


@pytest.mark.parametrize(
    ("zones", "out", "weights", "expected"),
    [
        pytest.param("ab", "", {}, 1.0, id="a fair share keeps its calls"),
        pytest.param("aab", "", {}, 1.0, id="so does more than that"),
        pytest.param("abbb", "", {}, 0.5, id="half a fair share keeps half"),
        pytest.param("aabb", "0", {}, 2 / 3, id="endpoints that are out do not count"),
        pytest.param("aabb", "01", {}, 0.0, id="with none left all go elsewhere"),
        pytest.param("aabb", "23", {}, 1.0, id="the others being out keeps them here"),
        pytest.param("bbc", "", {}, 0.0, id="a zone without endpoints prefers none"),
        pytest.param("abc", "", {}, 1.0, id="a third of three zones is fair"),
        pytest.param("ab", "", {0: 1, 1: 3}, 0.5, id="weights count, not heads"),
        pytest.param("aaa", "", {}, 1.0, id="one zone is all there is"),
    ],
)
def test_the_part_of_calls_that_stays_in_the_zone(
    zones: str, out: str, weights: dict[int, int], expected: float
) -> None:
    loads = fleet(zones, weights=weights)
    fit = [item for number, item in enumerate(loads) if str(number) not in out]
    assert local_part(fit, zone="a", zones=len(set(zones))) == pytest.approx(expected)


@given(st.text("abc", min_size=1, max_size=12).filter(lambda zones: "a" in zones))
def test_with_a_router_in_every_zone_each_endpoint_gets_the_same_where_calls_spill_over(
    zones: str,
) -> None:
    loads, routers = fleet(zones), sorted(set(zones))
    got: Counter[Load] = Counter()
    for zone in routers:
        lower = 0.0
        for upper, chosen in choices(
            loads, preference=Preference(zone=zone), zones=len(routers), now_s=0.0
        )[0]:
            assert chosen
            for item in chosen:
                got[item] += (upper - lower) / len(chosen)  # type: ignore[assignment]
            lower = upper
        assert lower == 1.0
    if len(routers) == 2:  # With more, what one zone lacks the others may have to spare unevenly.
        assert max(got.values()) == pytest.approx(min(got.values()))


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [(0.0, 0.1), (0.99, 0.1), (2.5, 0.2), (9.99, 0.9), (10.0, 1.0), (99.0, 1.0)],
)
def test_slow_start_grows_in_ten_steps(age_s: float, expected: float) -> None:
    assert factor(age_s, 10.0) == expected
    assert next_step_s(age_s, 10.0) > age_s
    assert factor(next_step_s(age_s, 10.0), 10.0) >= expected


@pytest.mark.parametrize("name", ["least_request", "round_robin", "session"])
def test_a_new_endpoint_gets_its_part_whichever_the_strategy(name: str) -> None:
    loads = fleet("aaa")
    pool = Pool(
        loads,
        changes=shared(loads),
        preference=Preference(slow_start_s=10.0),
        steady=name in STEADY,
    )
    rng, asking = random.Random(1), Asking()
    for now_s, part in ((100.0, 0.1), (105.0, 0.5), (110.0, 1.0)):
        loads[0].ramps_from_s = 100.0
        picked: Counter[Load] = Counter()
        for number in range(6000):
            asking.session = str(number)
            one = PICKS[name](pool.open(now_s, rng, asking), rng, now_s, asking)
            picked[one] += 1
        assert picked[loads[0]] == pytest.approx(6000 / 3 * part, rel=0.2)


def test_sessions_move_to_a_new_endpoint_once_and_to_no_other() -> None:
    loads = fleet("aaaa")
    pool = Pool(loads, changes=shared(loads), preference=Preference(slow_start_s=10.0), steady=True)
    rng, asking = random.Random(1), Asking()
    homes: dict[str, list[Load]] = {}
    loads[0].ramps_from_s = 0.0
    for now_s in range(12):
        for number in range(200):
            asking.session = str(number)
            one = PICKS["session"](pool.open(now_s, rng, asking), rng, now_s, asking)
            seen = homes.setdefault(asking.session, [one])
            if seen[-1] is not one:
                seen.append(one)
    assert all(len(seen) == 1 or seen[1:] == [loads[0]] for seen in homes.values())
    assert 20 < sum(loads[0] in seen for seen in homes.values()) < 80


def test_where_all_are_new_none_is_held_back() -> None:
    loads = fleet("aaa")
    for item in loads:
        item.ramps_from_s = 0.0
    found, _ = choices(loads, preference=Preference(slow_start_s=10.0), zones=0, now_s=1.0)
    assert [bound for bound, _ in found] == [1.0]


def test_who_is_left_to_try_is_asked_of_the_fit_ones_and_in_panic_of_all() -> None:
    changes = Changes()
    loads = one, two, out = load(1), load(2), load(3)
    for each in loads:
        each.changes = changes
    pool = Pool(loads, changes=changes)
    out.fails("it says so")
    assert pool.another(0.0, [one])
    assert not pool.another(0.0, [one, two])
    for fit in (one, two):
        fit.fails("it says so")
    assert pool.another(0.0, [one, two])
