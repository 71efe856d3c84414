"""Batch aware: one batch is filled before the next; the aim, failures and strangers bound it."""

import itertools
import random
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.router.loads import Asking, load, pick
from unit.router.simulated import EXECUTION_S, ITEM_S, filling, simulate

from aiflow_router.balancing.filling import FORGET_S, WINDOW, Fill, Filling, Level
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory

AIM_S = 0.2
ROOM = 8


def knowledge(asking: Asking) -> Filling:
    assert asking.memory.filling is not None
    return asking.memory.filling


def endpoints(
    asking: Asking, *waiting: int, room: int | None = ROOM, others: tuple[int, ...] = ()
) -> list[Load]:
    """Endpoints, by rank, where so many calls of the model wait, and so many of others."""
    loads = []
    for port, count in enumerate(waiting):
        other = others[port] if others else 0
        item = load(port, inflight=count + other)
        if room is not None:
            item.rooms["m"] = room
        knowledge(asking).fills[item] = Fill(rank=port)
        for _ in range(count):
            knowledge(asking).joined(item)
        loads.append(item)
    return loads


def slow(asking: Asking, item: Load, *, ahead: int, took_s: float, at_s: float = 0.0) -> None:
    knowledge(asking).fills[item].levels[ahead.bit_length()] = Level(mean_s=took_s, at_s=at_s)


@pytest.mark.parametrize(
    ("waiting", "others", "expected"),
    [
        pytest.param((0, 0, 0), (), 0, id="of idle ones the first is begun"),
        pytest.param((1, 5, 3), (), 1, id="the fullest with room is filled"),
        pytest.param((1, ROOM, 3), (), 2, id="a full one gets no more"),
        pytest.param((1, ROOM - 1, 3), (), 1, id="the last place is taken"),
        pytest.param((ROOM, ROOM + 3, ROOM + 1), (), 0, id="of full ones the least busy is picked"),
        pytest.param((2, 2, 2), (5, 0, 5), 1, id="of equally full ones the least busy with others"),
        pytest.param((0, 2, 0), (90, 0, 0), 1, id="calls of other models fill no batch"),
    ],
)
def test_the_endpoint_to_fill(
    waiting: tuple[int, ...], others: tuple[int, ...], expected: int
) -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, *waiting, others=others)
    assert pick("batch_aware", loads, asking=asking) is loads[expected]


@pytest.mark.parametrize(
    ("ahead", "took_s", "now_s", "expected"),
    [
        pytest.param(3, 0.19, 1.0, 0, id="an answer within the aim"),
        pytest.param(3, 0.21, 1.0, 1, id="an answer that comes too late"),
        pytest.param(2, 0.21, 1.0, 1, id="what 2 calls ahead say holds for 3"),
        pytest.param(1, 0.21, 1.0, 1, id="fewer ahead are too slow already"),
        pytest.param(8, 0.21, 1.0, 0, id="more calls ahead would be too slow"),
        pytest.param(3, 0.21, FORGET_S + 0.1, 0, id="what is long ago is forgotten"),
    ],
)
def test_the_aim_bounds_how_full_an_endpoint_gets(
    ahead: int, took_s: float, now_s: float, expected: int
) -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, 3, 0)
    slow(asking, loads[0], ahead=ahead, took_s=took_s)
    assert pick("batch_aware", loads, asking=asking, now_s=now_s) is loads[expected]


def test_an_answer_is_averaged_in_unless_what_was_known_is_too_old() -> None:
    for after_s, expected_s in ((1.0, 0.95), (FORGET_S + 1.0, 0.2)):
        fill = Fill(levels={0: Level(mean_s=1.0, at_s=0.0)})
        fill.joined()
        fill.answered(outcome="OK", took_s=0.2, now_s=after_s)
        assert fill.levels[0].mean_s == pytest.approx(expected_s)


def test_one_is_full_before_the_next_is_begun() -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, 0, 0, 0)
    picked = []
    for _ in range(3 * ROOM):
        chosen = pick("batch_aware", loads, asking=asking)
        chosen.inflight += 1
        picked.append(loads.index(chosen))
    assert picked == [0] * ROOM + [1] * ROOM + [2] * ROOM


def test_of_many_endpoints_some_are_filled_at_a_time_and_in_the_end_all() -> None:
    asking, rng = filling(AIM_S), random.Random(1)
    loads = endpoints(asking, *([0] * 20))
    for _ in range(3 * ROOM):
        pick("batch_aware", loads, rng, asking=asking).inflight += 1
    assert [item.inflight for item in loads] == [ROOM] * 3 + [0] * 17
    for _ in range(17 * ROOM):
        pick("batch_aware", loads, rng, asking=asking).inflight += 1
    assert knowledge(asking).spread <= 2 * 20 / WINDOW


def test_without_a_batch_size_it_is_least_request() -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, 2, 0, 1, room=None)
    assert pick("batch_aware", loads, asking=asking) is loads[1]
    assert (knowledge(asking).filled, knowledge(asking).spread) == (0, 1)
    loads[0].rooms["another"] = 100
    assert pick("batch_aware", loads, asking=asking).inflight < 2


def test_an_endpoint_that_fails_at_once_is_not_filled_for_long() -> None:
    asking, rng = filling(AIM_S), random.Random(1)
    loads = endpoints(asking, 0, 0)
    picked: Counter[int] = Counter()
    for number in range(200):
        chosen = pick("batch_aware", loads, rng, asking=asking, now_s=number / 100)
        picked[loads.index(chosen)] += 1
        outcome = "INTERNAL" if chosen is loads[0] else "OK"
        asking.memory.answered(chosen, outcome=outcome, took_s=0.001, now_s=number / 100)
    assert picked == {0: 1, 1: 199}


def test_a_connection_that_failed_says_nothing_about_how_fast_answers_come() -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, 0, 0)
    chosen = pick("batch_aware", loads, asking=asking)
    asking.memory.answered(chosen, outcome="UNREACHABLE", took_s=0.001, now_s=0.0)
    assert pick("batch_aware", loads, asking=asking) is chosen


def test_a_call_whose_end_was_never_told_is_forgotten_when_the_endpoint_is_idle() -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, ROOM, 0)
    assert pick("batch_aware", loads, asking=asking) is loads[1]
    loads[0].inflight = loads[1].inflight = 0
    assert pick("batch_aware", loads, asking=asking) is loads[0]


def test_who_left_is_forgotten() -> None:
    asking = filling(AIM_S)
    loads = endpoints(asking, 3, 2)
    assert pick("batch_aware", loads, asking=asking) is loads[0]
    asking.memory.follow(joined=(), left=loads[:1])
    assert set(knowledge(asking).fills) == set(loads[1:])
    assert pick("batch_aware", loads[1:], asking=asking) is loads[1]
    asking.memory.answered(loads[0], outcome="OK", took_s=0.1, now_s=0.0)  # Its last answer.


def test_routers_begin_with_the_same_endpoint_and_models_with_different_ones() -> None:
    begun: dict[str, set[str]] = {}
    for model, seed in itertools.product("abcdefgh", range(5)):
        asking = Asking(memory=Memory(timed=True, filling=Filling(model=model, aim_s=AIM_S)))
        loads = [load(port) for port in range(4)]
        for item in loads:
            item.rooms[model] = ROOM
        random.Random(seed).shuffle(loads)  # No order is promised.
        chosen = pick("batch_aware", loads, asking=asking)
        begun.setdefault(model, set()).add(chosen.endpoint.address)
    assert {len(addresses) for addresses in begun.values()} == {1}
    assert len(set.union(*begun.values())) > 1


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 100), st.integers(0, 99))
def test_at_saturation_every_endpoint_is_picked(
    count: int, room: int, start: int, seed: int
) -> None:
    asking, rng, picked = filling(AIM_S, start=start), random.Random(seed), Counter[str]()
    loads = endpoints(asking, *([0] * count), room=room)
    for _ in range(100 * count):
        chosen = pick("batch_aware", loads, rng, asking=asking)
        chosen.inflight += 1
        picked[chosen.endpoint.address] += 1
        if len(picked) == count:
            return
    raise AssertionError(f"only {len(picked)} of {count} with room {room}")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20), st.none() | st.integers(1, 20), st.dictionaries(
                st.integers(0, 5), st.floats(0.001, 1), max_size=4)
        ),
        min_size=1,
        max_size=12,
    ),
    st.floats(0.001, 1),
)  # fmt: skip
def test_who_is_filled_has_room_and_is_expected_within_the_aim(
    known: list[tuple[int, int | None, dict[int, float]]], aim_s: float
) -> None:
    asking = filling(aim_s)
    loads = endpoints(asking, *(waiting for waiting, _, _ in known), room=None)
    for item, (waiting, room, levels) in zip(loads, known, strict=True):
        if room is not None:
            item.rooms["m"] = room
        for level, took_s in levels.items():
            slow(asking, item, ahead=(1 << level) >> 1, took_s=took_s)
        assert knowledge(asking).fills[item].ahead(item.inflight) == waiting
    chosen = pick("batch_aware", loads, asking=asking, now_s=1.0)
    if knowledge(asking).filled:
        fill = knowledge(asking).fills[chosen]
        ahead = fill.waiting[-1]
        assert ahead < chosen.rooms["m"]
        assert fill.expected_s(ahead, 1.0) <= aim_s


@settings(max_examples=25)
@given(
    share=st.floats(0.02, 0.8),
    aim_s=st.floats(0.02, 0.5),
    max_batch=st.integers(2, 16),
    tritons=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_is_never_slower_than_least_request_by_more_than_the_aim(
    share: float, aim_s: float, max_batch: int, tritons: int, seed: int
) -> None:
    per_s = share * tritons * max_batch / (EXECUTION_S + max_batch * ITEM_S)
    typical_s = {}
    for strategy in ("batch_aware", "least_request"):
        outcome = simulate(
            strategy, per_s=per_s, aim_s=aim_s, max_batch=max_batch, tritons=tritons, seed=seed
        )
        typical_s[strategy] = statistics.mean(outcome.took_s)
    assert typical_s["batch_aware"] <= typical_s["least_request"] + aim_s


@pytest.mark.parametrize(
    ("per_s", "aim_s", "fewer", "slower"),
    [
        pytest.param(10, 0.2, 1.0, 1.3, id="hardly any calls: little is saved, little is lost"),
        pytest.param(100, 0.2, 0.5, 1.2, id="a fifth of what they can do: half is saved at least"),
        pytest.param(260, 0.2, 0.75, 1.2, id="half of what they can do: a quarter is saved"),
        pytest.param(530, 0.2, 1.0, 1.3, id="nearly all they can do: nothing is saved or lost"),
        pytest.param(100, EXECUTION_S, 1.01, 1.05, id="an aim nobody can keep changes nothing"),
    ],
)
def test_executions_saved(per_s: float, aim_s: float, fewer: float, slower: float) -> None:
    filled = simulate("batch_aware", per_s=per_s, aim_s=aim_s, calls=4000)
    spread = simulate("least_request", per_s=per_s, aim_s=aim_s, calls=4000)
    assert filled.executions <= fewer * spread.executions
    mean_s = [statistics.mean(outcome.took_s) for outcome in (filled, spread)]
    assert mean_s[0] <= slower * mean_s[1]


def test_the_aim_holds_for_99_of_100_calls_also_when_several_routers_fill_the_same() -> None:
    for routers in (1, 2):
        outcome = simulate("batch_aware", per_s=260, aim_s=AIM_S, calls=4000, routers=routers)
        assert statistics.quantiles(outcome.took_s, n=100)[98] <= AIM_S


def test_a_memory_without_an_aim_is_balanced_by_least_request() -> None:
    loads = [load(1, inflight=3), load(2)]
    assert pick("batch_aware", loads, asking=Asking(memory=Memory())) is loads[1]
