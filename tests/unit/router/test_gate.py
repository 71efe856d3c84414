"""The gate: never more inside than the limit, nobody forgotten, the right one next."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiflow_router.limits.concurrency import End, Gradient
from aiflow_router.limits.gate import PRIORITIES, Gate, Refusal, Ticket
from aiflow_router.limits.overload import Overload, gates

FOREVER_S = 1e9


def gate(*, limit: int = 1, queue: int = 4, inside: int = 0, shadow: bool = False) -> Gate:
    made = Gate(limit=limit, queue=queue, rng=random.Random(1), shadow=shadow)
    for _ in range(inside):
        assert made.try_enter()
    return made


def join(to: Gate, priority: str = "normal", *, deadline_s: float = FOREVER_S) -> Ticket:
    ticket = to.join(priority=priority, deadline_s=deadline_s, now_s=0.0)
    assert isinstance(ticket, Ticket)
    return ticket


def refused(to: Gate, priority: str = "normal", *, deadline_s: float = FOREVER_S) -> Refusal:
    refusal = to.join(priority=priority, deadline_s=deadline_s, now_s=0.0)
    assert isinstance(refusal, Refusal)
    return refusal


def drained(full: Gate, tickets: dict[str, Ticket]) -> list[str]:
    """The names in the order in which they get in."""
    order: list[str] = []
    for name, ticket in tickets.items():
        ticket.wake = lambda name=name: order.append(name)  # type: ignore[misc]
    while full.waiting:
        full.leave(End.OTHER, 0.0, 0.0)
    return order


def test_there_is_room_up_to_the_limit() -> None:
    two = gate(limit=2)
    assert [two.try_enter() for _ in range(3)] == [True, True, False]
    two.leave(End.ANSWERED, 0.1, 1.0)
    assert two.try_enter()


@pytest.mark.parametrize(
    ("joined", "expected"),
    [
        pytest.param("nnn", [0, 1, 2], id="one priority: first come, first served"),
        pytest.param("lnh", [2, 1, 0], id="the higher priority goes first"),
        pytest.param("lhlh", [1, 3, 0, 2], id="in order within each"),
        pytest.param("?hn", [1, 0, 2], id="an unknown priority is normal"),
    ],
)
def test_who_is_next(joined: str, expected: list[int]) -> None:
    full = gate(inside=1)
    names = {"n": "normal", "l": "low", "h": "high", "?": "urgent!"}
    tickets = {str(n): join(full, names[letter]) for n, letter in enumerate(joined)}
    assert drained(full, tickets) == [str(n) for n in expected]


@pytest.mark.parametrize("waiting", ["normal", "low"])
def test_who_waits_is_overtaken_by_so_many_and_no_more(waiting: str) -> None:
    full, overtaken = gate(queue=5, inside=1), 0
    ticket = join(full, waiting)
    while not ticket.entered:
        join(full, "high")
        full.leave(End.OTHER, 0.0, 0.0)
        overtaken += not ticket.entered
        assert overtaken <= 2 * 5
    assert overtaken == 5 * PRIORITIES.index(waiting)


def test_a_full_queue_sheds_the_newcomer_or_who_matters_less() -> None:
    full = gate(queue=2, inside=1)
    low, normal = join(full, "low"), join(full)
    shed = refused(full, "low")
    assert (shed.reason, shed.waiting) == ("OVERLOADED", 2)
    high = join(full, "high")
    assert low.refusal is not None
    assert low.refusal.reason == "OVERLOADED"
    assert refused(full).reason == "OVERLOADED"
    assert drained(full, {"high": high, "normal": normal}) == ["high", "normal"]
    assert full.refused == {("low", "OVERLOADED"): 2, ("normal", "OVERLOADED"): 1}


def test_who_has_waited_its_time_is_not_pushed_out() -> None:
    full = gate(queue=2, inside=1)
    aged = join(full, "low")
    for _ in range(4):
        assert join(full, "high")
        full.leave(End.OTHER, 0.0, 0.0)
    assert not aged.entered
    join(full, "high")
    assert refused(full, "high").reason == "OVERLOADED"
    assert aged.refusal is None
    full.leave(End.OTHER, 0.0, 0.0)
    assert aged.entered


def test_no_queue_sheds_at_once() -> None:
    assert refused(gate(queue=0, inside=1), "high").reason == "OVERLOADED"


def timed(*, answer_s: float, limit: int, queue: int = 4) -> Gate:
    """A full gate whose answers take `answer_s`."""
    full = gate(limit=limit, queue=queue, inside=limit)
    full.leave(End.ANSWERED, answer_s, 0.0)
    assert full.try_enter()
    return full


@pytest.mark.parametrize(
    ("ahead", "deadline_s", "gets_in"),
    [
        pytest.param(0, 1.6, True, id="half an answer until a place is free, and its own answer"),
        pytest.param(0, 1.4, False, id="not: no time for its own answer"),
        pytest.param(2, 2.6, True, id="three halves with two ahead, and its own answer"),
        pytest.param(2, 2.4, False, id="not: two ahead are one too many"),
    ],
)
def test_a_deadline_that_cannot_be_kept_is_told_at_the_door(
    ahead: int, deadline_s: float, gets_in: bool
) -> None:
    full = timed(answer_s=1.0, limit=2)
    for _ in range(ahead):
        join(full)
    found = full.join(priority="normal", deadline_s=deadline_s, now_s=0.0)
    assert isinstance(found, Ticket) == gets_in
    if isinstance(found, Refusal):
        assert found.reason == "DEADLINE_UNREACHABLE"
        assert found.retry_after_s < 0
        assert full.refused == {("normal", "DEADLINE_UNREACHABLE"): 1}


def test_a_higher_priority_has_fewer_ahead() -> None:
    full = timed(answer_s=1.0, limit=1)
    join(full)
    assert refused(full, deadline_s=2.5).reason == "DEADLINE_UNREACHABLE"
    join(full, "high", deadline_s=2.5)


@pytest.mark.parametrize(
    ("answer_s", "lowest_s", "highest_s"),
    [
        pytest.param(0.0, 1.0, 1.5, id="before any answer was timed: a second"),
        pytest.param(1.0, 2.0, 3.0, id="until those who wait are in, and up to half as much again"),
        pytest.param(1e-6, 0.05, 0.05, id="not at once"),
        pytest.param(1e6, 30.0, 30.0, id="not never"),
    ],
)
def test_when_to_come_back(answer_s: float, lowest_s: float, highest_s: float) -> None:
    full = timed(answer_s=answer_s, limit=1, queue=1)
    join(full)
    delays = {refused(full).retry_after_s for _ in range(50)}
    assert lowest_s <= min(delays) <= max(delays) <= highest_s
    assert lowest_s == highest_s or len(delays) > 10


def test_who_gives_up_leaves_its_place_to_the_next() -> None:
    full = gate(queue=2, inside=1)
    first, second = join(full), join(full)
    full.give_up(first, "CANCELLED", 0.0)
    assert full.waiting == 1
    full.leave(End.OTHER, 0.0, 0.0)
    assert second.entered
    third = join(full)
    full.give_up(second, "CANCELLED", 0.0)  # It was let in but never took notice.
    assert third.entered
    assert full.inflight == 1
    assert full.refused == {("normal", "CANCELLED"): 1}


def test_who_is_past_its_deadline_is_passed_over() -> None:
    full = gate(queue=2, inside=1)
    late, next_one = join(full, deadline_s=1.0), join(full)
    full.leave(End.OTHER, 0.0, 2.0)
    assert late.refusal is not None
    assert late.refusal.reason == "DEADLINE_EXCEEDED"
    assert next_one.entered


def test_in_shadow_everyone_gets_in_and_is_counted() -> None:
    shadow = gate(limit=1, queue=1, inside=1, shadow=True)
    assert all(join(shadow).entered for _ in range(3))
    assert shadow.inflight == 4
    assert shadow.would_refuse == {("normal", "OVERLOADED"): 2}
    for _ in range(4):
        shadow.leave(End.ANSWERED, 1.0, 0.0)
    assert shadow.try_enter()
    assert join(shadow, deadline_s=1.5).entered
    assert shadow.would_refuse["normal", "DEADLINE_UNREACHABLE"] == 1


def test_an_adaptive_limit_leaves_streams_to_a_gate_of_their_own() -> None:
    rng = random.Random(1)
    fixed = gates(Overload(limit=5, lowest=3, highest=9, queue=1, mode="enforce"), rng)
    assert fixed.stream is fixed.unary
    found = gates(Overload(limit=None, lowest=3, highest=9, queue=1, mode="enforce"), rng)
    assert (found.unary.limit, found.stream.limit) == (3, 9)
    off = gates(Overload(limit=None, lowest=3, highest=9, queue=1, mode="off"), rng)
    assert all(off.unary.try_enter() for _ in range(10_000))


def test_who_waits_gets_in_when_the_limit_grows() -> None:
    gradient = Gradient(lowest=1, highest=10, rng=random.Random(1))
    growing = Gate(limit=0, queue=50, rng=random.Random(1), gradient=gradient)
    assert growing.try_enter()
    tickets = [join(growing) for _ in range(40)]
    now_s = 0.0
    while not tickets[-1].entered:
        now_s += 0.1
        growing.leave(End.ANSWERED, 0.1, now_s)
        assert growing.inflight == growing.limit or not growing.waiting
    assert growing.limit > 3


class Calls(RuleBasedStateMachine):
    """Calls come, wait, give up and leave in any order, while the limit moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.gate = gate(limit=3, queue=4)
        self.entered: list[Ticket | None] = []  # None for who never waited.
        self.queued: list[Ticket] = []
        self.most = 0  # Inside after the limit shrank; may only fall to the limit.

    def _woken(self, ticket: Ticket) -> Callable[[], None]:
        def wake() -> None:
            assert ticket in self.queued, "woken twice, or never joined"
            assert ticket.entered != (ticket.refusal is not None)
            self.queued.remove(ticket)
            if ticket.entered:
                self.entered.append(ticket)

        return wake

    @rule(
        priority=st.sampled_from(["high", "normal", "low", ""]),
        patience_s=st.floats(0.1, 50),
    )
    def come(self, priority: str, patience_s: float) -> None:
        if self.gate.try_enter():
            assert not self.queued, "overtook who waits"
            self.entered.append(None)
            return
        found = self.gate.join(
            priority=priority, deadline_s=self.now_s + patience_s, now_s=self.now_s
        )
        if isinstance(found, Ticket):
            self.queued.append(found)
            found.wake = self._woken(found)

    @rule(index=st.integers(0, 100), end=st.sampled_from(list(End)), took_s=st.floats(0.001, 5))
    def leave(self, index: int, end: End, took_s: float) -> None:
        if self.entered:
            self.now_s += took_s
            self.entered.pop(index % len(self.entered))
            self.gate.leave(end, took_s, self.now_s)

    @rule(index=st.integers(0, 100))
    def give_up(self, index: int) -> None:
        tickets = [*self.queued, *(ticket for ticket in self.entered if ticket is not None)]
        if tickets:
            ticket = tickets[index % len(tickets)]
            (self.queued if ticket in self.queued else self.entered).remove(ticket)
            self.gate.give_up(ticket, "CANCELLED", self.now_s)

    @rule(limit=st.integers(1, 6))
    def limit_moves(self, limit: int) -> None:
        """As the gradient does it: when a call leaves."""
        if self.entered:
            self.gate.limit = limit
            self.most = max(self.most, len(self.entered))
            self.leave(0, End.OTHER, 0.001)

    @invariant()
    def counts_agree(self) -> None:
        assert self.gate.inflight == len(self.entered)
        assert self.gate.waiting == len(self.queued) <= self.gate.queue

    @invariant()
    def never_more_inside_than_the_limit(self) -> None:
        assert len(self.entered) <= max(self.gate.limit, self.most)
        self.most = len(self.entered)

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        assert not self.queued or len(self.entered) >= self.gate.limit

    def teardown(self) -> None:
        while self.entered:
            self.leave(0, End.OTHER, 0.001)
        assert not self.queued, "a waiter was lost"
        assert self.gate.inflight == self.gate.waiting == 0


TestCalls = Calls.TestCase


@given(
    limit=st.integers(1, 3),
    queue=st.integers(0, 3),
    shadow=st.booleans(),
    before=st.lists(st.sampled_from(PRIORITIES), max_size=8),
    priority=st.sampled_from((*PRIORITIES, "")),
    left_s=st.floats(0.0, 3.0),
)
def test_the_outlook_is_what_the_next_call_meets(
    *, limit: int, queue: int, shadow: bool, before: list[str], priority: str, left_s: float
) -> None:
    one = gate(limit=limit, queue=queue, shadow=shadow)
    one.try_enter()
    one.leave(End.ANSWERED, 0.5, 0.0)
    for earlier in before:
        if not one.try_enter():
            one.join(priority=earlier, deadline_s=FOREVER_S, now_s=0.0)
    counted = one.refused + one.would_refuse
    outlook = one.outlook(priority=priority, deadline_s=left_s, now_s=0.0)
    assert one.refused + one.would_refuse == counted
    if one.try_enter():
        assert (outlook.refusal, outlook.wait_s) == (None, 0.0)
        return
    met = one.join(priority=priority, deadline_s=left_s, now_s=0.0)
    foreseen = None if outlook.refusal is None else outlook.refusal.reason
    if shadow:
        assert foreseen == next((reason for _, reason in one.would_refuse - counted), None)
    elif isinstance(met, Refusal):
        assert (foreseen, outlook.wait_s) == (met.reason, met.wait_s)
    else:
        assert foreseen is None
