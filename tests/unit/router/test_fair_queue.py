"""The queue: fair by weight whoever sends more, by priority, and nobody waits for ever."""

import copy
import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiflow_router.limits.fair_queue import FairQueue, Waiter

LEVELS = {"h": 0, "n": 1, "l": 2}
WEIGHTS = {"A": 1.0, "B": 1.0, "C": 3.0}


def waiter(tenant: str = "A", level: int = 0, *, cost: float = 1.0, weight: float = 1.0) -> Waiter:
    return Waiter(tenant=tenant, level=level, cost=cost, weight=weight)


def queue(*waiters: Waiter, ages: float = math.inf) -> FairQueue[Waiter]:
    made: FairQueue[Waiter] = FairQueue(levels=3, ages=ages)
    for one in waiters:
        made.join(one, 0.0)
    return made


def drained(full: FairQueue[Waiter]) -> list[Waiter]:
    return [full.take(0.0) for _ in range(len(full))]


@pytest.mark.parametrize(
    ("joined", "served"),
    [
        pytest.param("A1 A2 A3", "A1 A2 A3", id="one tenant: first come, first served"),
        pytest.param("A1 A2 A3 B1", "A1 B1 A2 A3", id="who sent more waits behind who sent less"),
        pytest.param("A1 A2 B1 B2", "A1 B1 A2 B2", id="equal weights take turns"),
        pytest.param(
            "A1 A2 A3 C1 C2 C3 C4 C5",
            "A1 C1 C2 C3 A2 C4 C5 A3",
            id="three times the weight is three turns to one",
        ),
        pytest.param("A1 B1h", "B1h A1", id="the higher priority goes first, whoever it is of"),
        pytest.param("A1l A2h A3 B1", "A2h A3 B1 A1l", id="each level is fair for itself"),
        pytest.param("A1*5 A2 B1 B2 B3", "A1*5 B1 B2 B3 A2", id="a dear call is several turns"),
        pytest.param("A1*0 A2 B1", "A1*0 A2 B1", id="one that costs nothing is no turn"),
    ],
)
def test_who_is_next(joined: str, served: str) -> None:
    names: dict[Waiter, str] = {}
    for word in joined.split():
        name, _, cost = word.partition("*")
        level = LEVELS.get(name[-1], 1)
        made = waiter(name[0], level, cost=float(cost or 1), weight=WEIGHTS[name[0]])
        names[made] = word
    assert " ".join(names[one] for one in drained(queue(*names))) == served


def test_who_comes_after_a_turn_has_no_credit_from_its_idle_time() -> None:
    full = queue(*(waiter("A") for _ in range(20)))
    for _ in range(10):
        full.take(0.0)
    for _ in range(10):
        full.join(waiter("B"), 0.0)
    assert "".join(one.tenant for one in drained(full)) == "BA" * 10


def test_who_has_just_been_served_comes_behind_who_waits() -> None:
    full = queue(waiter("A"), waiter("B"), waiter("B"))
    assert full.take(0.0).tenant == "A"
    full.join(waiter("A"), 0.0)
    full.join(waiter("C"), 0.0)
    assert "".join(one.tenant for one in drained(full)) == "BCBA"


@pytest.mark.parametrize("gone", [[0], [1], [3], [0, 1, 2, 3], [4, 2]])
def test_who_leaves_has_cost_its_tenant_nothing(gone: list[int]) -> None:
    def tenants(*, leaving: bool) -> str:
        mine = [waiter("A", cost=cost) for cost in (3.0, 1.0, 2.0, 1.0, 1.0, 1.0)]
        stay = [one for index, one in enumerate(mine) if index not in gone]
        full = queue(*(mine if leaving else stay))
        for index in gone if leaving else ():
            full.leave(mine[index])
        for one in (waiter("B", cost=1.5), waiter("A"), *(waiter("B") for _ in range(6))):
            full.join(one, 0.0)
        return "".join(one.tenant for one in drained(full))

    assert tenants(leaving=True) == tenants(leaving=False)


def passed(full: FairQueue[Waiter], now: float) -> None:
    """A turn goes to a call that has just come."""
    full.join(waiter("passes", level=0), now)
    assert full.take(now).tenant == "passes"


def test_who_is_passed_for_long_moves_up_a_level_at_a_time() -> None:
    full = queue(ages=10)
    low, normal = waiter("A", level=2), waiter("B", level=1)
    full.join(low, 0.0)
    full.join(normal, 5.0)
    passed(full, 9.9)
    assert low.level == 2
    passed(full, 10.0)
    assert (low.level, normal.level) == (1, 1)
    passed(full, 14.9)
    assert normal.level == 1
    passed(full, 15.0)
    assert normal.level == 0
    assert full.take(19.0) is normal
    assert low.level == 1
    assert full.take(50.0) is low


def test_only_turns_of_higher_levels_make_one_move_up() -> None:
    full = queue(*(waiter("A", level=1) for _ in range(9)), ages=10)
    for now in range(0, 80, 10):
        last = full.last()
        full.take(now)
    assert last.level == 1
    full.join(waiter("B", level=1), 99)
    passed(full, 99)
    assert last.level == 0, "nobody else had a turn since 70"


def test_old_calls_of_who_sends_too_many_do_not_pass_new_ones_of_who_sends_few() -> None:
    full = queue(*(waiter("loud", level=1) for _ in range(100)), ages=10)
    for now in range(0, 1000, 20):
        full.join(waiter("quiet", level=1), now)
        turns = [full.take(now + 1).tenant, full.take(now + 2).tenant]
        assert "quiet" in turns


def test_who_moves_to_another_queue_keeps_the_patience_it_has_left() -> None:
    one, other = queue(waiter("B", 2), ages=10), queue(waiter("B", 2), ages=10)
    low = waiter("A", level=2)
    one.join(low, 0.0)
    passed(one, 8.0)
    one.leave(low)
    passed(other, 8.0)
    other.join(low, 8.0)
    passed(other, 9.9)
    assert low.level == 2
    passed(other, 10.0)
    assert low.level == 1
    assert len(one) == 1


def test_the_last_is_of_the_lowest_priority_and_of_who_sent_most() -> None:
    full = queue(waiter("A"), waiter("B"), waiter("A"), waiter("A"), waiter("C"))
    assert full.last().tenant == "A"
    low = waiter("C", level=2)
    full.join(low, 0.0)
    assert full.last() is low


def test_nothing_is_kept_of_those_who_have_gone() -> None:
    full = queue(waiter("stays", level=2, cost=1e9), waiter("stays", level=2), ages=1e9)
    full.take(0.0)
    for n in range(1000):
        first, second, third = (waiter(f"t{n}", level=2) for _ in range(3))
        for one in (first, second, third):
            full.join(one, 0.0)
        full.leave(third)
        assert (full.take(0.0), full.take(0.0)) == (first, second)
    assert len(full) == 1
    assert len(full._levels[2]._ageing) < 200
    assert len(full._levels[2]._ends) < 200


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=5),
    dearest=st.lists(st.floats(0.1, 50), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
    turns=st.integers(1, 300),
)
def test_tenants_that_always_wait_get_their_weights(
    weights: list[float], dearest: list[float], seed: int, turns: int
) -> None:
    """The bound of start-time fair queueing: two tenants differ by one dearest call of each."""
    rng, had = random.Random(seed), [0.0] * len(weights)
    full = queue()

    def send(index: int) -> None:
        cost = rng.uniform(0.0, dearest[index])
        full.join(waiter(str(index), cost=cost, weight=weights[index]), 0.0)

    for index in range(len(weights)):
        for _ in range(1 + index * 50):
            send(index)
    for _ in range(turns):
        served = full.take(0.0)
        had[int(served.tenant)] += served.cost
        send(int(served.tenant))
    for one, other in itertools.combinations(range(len(weights)), 2):
        apart = abs(had[one] / weights[one] - had[other] / weights[other])
        bound = dearest[one] / weights[one] + dearest[other] / weights[other]
        assert apart <= bound * (1 + 1e-6)


@given(
    tenants=st.integers(1, 6),
    burst=st.integers(1, 40),
    level=st.integers(0, 2),
    ages=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_nobody_starves(tenants: int, burst: int, level: int, ages: int, seed: int) -> None:
    """One call is served for each that comes, all of a higher priority, for ever."""
    rng, full = random.Random(seed), queue(ages=ages)
    for _ in range(burst):
        full.join(waiter("0", level=rng.randrange(3)), 0.0)
    mine = waiter("mine", level=level)
    full.join(mine, 0.0)
    # It is at the top after `ages` for each level. There all that were before it may be, and in
    # each round of turns every tenant has one.
    patience = ages * level + burst + 2 * tenants + 2
    for now in range(patience + 1):
        full.join(waiter(str(rng.randrange(tenants)), level=0), now)
        if full.take(now) is mine:
            return
    pytest.fail("it starves")


def test_who_comes_anew_each_time_cannot_starve_who_sent_more() -> None:
    full = queue(*(waiter("A") for _ in range(5)))
    mine = full.last()
    for n in range(100):
        full.join(waiter(f"t{n % 10}"), 0.0)
        if full.take(0.0) is mine:
            return
    pytest.fail("it starves")


class Waiting(RuleBasedStateMachine):
    """Calls come, are served and leave in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = queue(ages=7.0)
        self.here: list[Waiter] = []

    @rule(
        tenant=st.sampled_from("ABCD"),
        level=st.integers(0, 2),
        cost=st.sampled_from([0.0, 0.5, 1.0, 10.0]),
        weight=st.sampled_from([0.3, 1.0, 4.0]),
    )
    def come(self, tenant: str, level: int, cost: float, weight: float) -> None:
        made = waiter(tenant, level, cost=cost, weight=weight)
        self.queue.join(made, self.now)
        self.here.append(made)

    @rule(index=st.integers(0, 100))
    def leave(self, index: int) -> None:
        if self.here:
            self.queue.leave(self.here.pop(index % len(self.here)))

    @rule(after=st.floats(0, 10))
    def serve(self, after: float) -> None:
        self.now += after
        first = self.queue.first()
        assert (first is None) == (not self.here)
        if first is not None:
            assert self.queue.ahead(first).calls == 0
            assert self.queue.take(self.now) is first
            assert first.level == min(one.level for one in self.here)
            self.here.remove(first)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.here)
        assert self.queue.cost == pytest.approx(sum(one.cost for one in self.here))

    @invariant()
    def all_are_found(self) -> None:
        if not self.here:
            return
        last = self.queue.last()
        assert last in self.here
        assert last.level == max(one.level for one in self.here)
        order = drained(copy.deepcopy(self.queue))
        assert sorted(one.number for one in order) == sorted(one.number for one in self.here)

    def teardown(self) -> None:
        assert Counter(map(id, drained(self.queue))) == Counter(map(id, self.here))


TestWaiting = Waiting.TestCase


@given(
    calls=st.lists(st.tuples(st.sampled_from("ABCD"), st.integers(0, 2)), min_size=1, max_size=30),
    served=st.integers(0, 10),
)
def test_who_came_last_is_told_how_many_go_first(calls: list[tuple[str, int]], served: int) -> None:
    weights = {"A": 1.0, "B": 2.0, "C": 0.5, "D": 4.0}  # Exact in binary, as are their turns.
    full = queue()
    for tenant, level in calls:
        newest = waiter(tenant, level, weight=weights[tenant])
        full.join(newest, 0.0)
    for _ in range(min(served, len(full) - 1)):
        if full.first() is not newest:
            full.take(0.0)
    ahead = full.ahead(newest)
    order = drained(full)
    assert ahead.calls == order.index(newest)
    assert ahead.cost == pytest.approx(order.index(newest))


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_last_is_who_is_served_last(calls: list[tuple[str, int]]) -> None:
    full = queue(*(waiter(tenant, level) for tenant, level in calls))
    last = full.last()
    assert drained(full)[-1] is last
