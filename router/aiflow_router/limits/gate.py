"""The gate before a model or service: so many calls are in, some wait, the rest is told to go.

Plain Python: `join` hands out a `Ticket`, and `rpc` awaits it and refuses. Each call that enters
leaves exactly once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aiflow_router.limits.concurrency import End, Gradient
from aiflow_router.limits.fair_queue import FairQueue, Waiter

PRIORITIES = ("high", "normal", "low")
# Weight of the newest in the recent answer time.
NEWEST = 1 / 16
# A delay to come back after, where no answer was ever timed, and its bounds elsewhere.
UNMEASURED_S = 1.0
SOONEST_S = 0.05
LATEST_S = 30.0

Reason = Literal["OVERLOADED", "DEADLINE_UNREACHABLE", "DEADLINE_EXCEEDED", "CANCELLED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a call does not get in.

    Attributes:
        waiting: calls in the queue.
        wait_s: how long it would have waited, by estimate.
        retry_after_s: when it may come back; negative for never.
    """

    reason: Reason
    waiting: int
    wait_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a call would meet at the gate.

    Attributes:
        ahead: calls that wait and would go in before it.
        wait_s: how long it would wait, by estimate; 0 where there is room, or nothing was measured.
        refusal: why it would not get in; with `shadow` only counted.
    """

    ahead: int
    wait_s: float
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The settings of a gate; they may change while calls are inside.

    Attributes:
        limit: calls that may be inside, where no gradient says so.
        queue: calls that may wait.
        shadow: nobody waits or is refused.
    """

    limit: int
    queue: int
    shadow: bool = False
    gradient: Gradient | None = None


def _nobody() -> None:
    pass


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket(Waiter):
    """A place in the queue, then a place inside or a refusal.

    Attributes:
        priority: index into PRIORITIES; its level as it came.
        deadline_s: it leaves the queue then.
        entered: it counts as in flight.
        refusal: set once it is neither inside nor waiting any more.
        wake: called when one of these two is set.
    """

    priority: int
    joined_s: float
    deadline_s: float
    entered: bool = False
    refusal: Refusal | None = None
    wake: Callable[[], None] = field(default=_nobody, repr=False)


class Gate:
    """Lets `limit` calls in and `queue` wait; nobody waits while there is room.

    The queue is fair: by priority, within it by the tenants' weights. It ages by calls, not by
    time, so a slow backend does not undo priorities: who was passed by `queue` calls of higher
    ones moves up by one. A full queue sheds who is last in this order, who may be the newcomer.
    With `shadow` nobody waits or is refused; what would have been is counted apart.

    Attributes:
        inflight: calls inside.
        limit: how many may be.
        waiting: calls in the queue.
        answer_s: how long answers take lately; 0 before the first.
        refused: calls that did not get in, by priority and reason.
        would_refuse: those that got in because of `shadow`.
    """

    def __init__(
        self,
        *,
        limit: int,
        queue: int,
        rng: random.Random,
        gradient: Gradient | None = None,
        shadow: bool = False,
    ) -> None:
        self.limit = limit if gradient is None else gradient.current
        self.queue = queue
        self.shadow = shadow
        self.inflight = 0
        self.waiting = 0
        self.answer_s = 0.0
        self.refused: Counter[tuple[str, str]] = Counter()
        self.would_refuse: Counter[tuple[str, str]] = Counter()
        self._gradient = gradient
        self._rng = rng
        self._line: FairQueue[Ticket] = FairQueue(levels=len(PRIORITIES), ages=max(1, queue))
        self._served = 0  # Of those who waited: the clock by which they age.

    @property
    def adaptive(self) -> bool:
        return self._gradient is not None

    def try_enter(self) -> bool:
        """Whether the call is in; all that a call costs here while there is room."""
        if self.inflight < self.limit:
            self.inflight += 1
            return True
        return False

    def reshape(self, shape: Shape, now_s: float) -> None:
        """Takes other settings; who is inside stays, who waits gets in or stays in line.

        A line that is too long now is cut at its end.
        """
        self.queue = shape.queue
        self.shadow = shape.shadow
        self._line.ages = max(1, shape.queue)
        self._gradient = shape.gradient
        self.limit = shape.limit if shape.gradient is None else shape.gradient.current
        self._admit(now_s)
        self._cut()

    def join(
        self,
        *,
        priority: str,
        deadline_s: float,
        now_s: float,
        tenant: str = "",
        weight: float = 1.0,
    ) -> Ticket | Refusal:
        """A place in the queue for a call that found no room, or why it gets none."""
        ticket = _ticket(priority, tenant, weight, joined_s=now_s, deadline_s=deadline_s)
        if self.shadow:
            return self._pass(ticket, now_s)
        ahead, reason = self._lined_up(ticket, now_s)
        if reason is not None:
            self._line.leave(ticket)
            return self._refuse(ticket, reason, ahead)
        self.waiting += 1
        self._cut()
        return ticket

    def outlook(
        self,
        *,
        priority: str,
        deadline_s: float,
        now_s: float,
        tenant: str = "",
        weight: float = 1.0,
    ) -> Outlook:
        """What a call that came now would meet; nothing is counted.

        Where no tenant is named it is meant of the one who would wait longest.
        """
        if self.inflight < self.limit and not self.waiting:
            return Outlook(ahead=0, wait_s=0.0)
        if not tenant and self.waiting:
            last = self._line.last()
            tenant, weight = last.tenant, last.weight
        ticket = _ticket(priority, tenant, weight, joined_s=now_s, deadline_s=deadline_s)
        if self.shadow:
            ahead = max(0, self.inflight - self.limit)
            reason = self._against(ticket, ahead, now_s, full=ahead >= self.queue)
        else:
            ahead, reason = self._lined_up(ticket, now_s)
            self._line.leave(ticket)
        wait_s = self._wait_s(ahead)
        refusal = None if reason is None else self._refusal(reason, wait_s)
        return Outlook(ahead=ahead, wait_s=wait_s, refusal=refusal)

    def leave(self, end: End, took_s: float, now_s: float) -> None:
        """A call that was inside ended so, after `took_s` at the backend."""
        if end is End.ANSWERED:
            self.answer_s += (took_s - self.answer_s) * NEWEST if self.answer_s else took_s
        gradient = self._gradient
        if gradient is not None:
            gradient.ended(end, took_s, now_s, self.inflight)
            self.limit = gradient.current
        self.inflight -= 1
        if self.waiting:
            self._admit(now_s)

    def give_up(self, ticket: Ticket, reason: Reason, now_s: float) -> None:
        """The call behind the ticket will not go on, whatever became of the ticket meanwhile."""
        if ticket.entered:
            ticket.entered = False
            self.leave(End.OTHER, 0.0, now_s)
        elif ticket.refusal is None:
            self._line.leave(ticket)
            self.waiting -= 1
            ticket.refusal = self._refuse(ticket, reason, 0)

    def _lined_up(self, ticket: Ticket, now_s: float) -> tuple[int, Reason | None]:
        """Puts it into the line; how many go before it there, and why it cannot stay."""
        self._line.join(ticket, self._served)
        full = self.waiting >= self.queue and self._line.last() is ticket
        ahead = self.waiting if full else self._line.ahead(ticket).calls
        return ahead, self._against(ticket, ahead, now_s, full=full)

    def _against(self, ticket: Ticket, ahead: int, now_s: float, *, full: bool) -> Reason | None:
        if full:
            return "OVERLOADED"
        return "DEADLINE_UNREACHABLE" if self._too_late(ahead, ticket, now_s) else None

    def _cut(self) -> None:
        """Sends those away who are last in a line that is too long."""
        while self.waiting > self.queue:
            last = self._line.last()
            self._line.leave(last)
            self.waiting -= 1
            last.refusal = self._refuse(last, "OVERLOADED", self.queue)
            last.wake()

    def _admit(self, now_s: float) -> None:
        while self.inflight < self.limit or self.shadow:
            ticket = self._line.first()
            if ticket is None:
                return
            self.waiting -= 1
            if ticket.deadline_s <= now_s:
                self._line.leave(ticket)
                ticket.refusal = self._refuse(ticket, "DEADLINE_EXCEEDED", 0)
            else:
                self._served += 1
                self._line.take(self._served)
                ticket.entered = True
                self.inflight += 1
            ticket.wake()

    def _pass(self, ticket: Ticket, now_s: float) -> Ticket:
        """Lets a call in that would wait or be refused; those over the limit stand for a queue."""
        ahead = self.inflight - self.limit
        reason = self._against(ticket, ahead, now_s, full=ahead >= self.queue)
        if reason is not None:
            self._refuse(ticket, reason, ahead)
        self.inflight += 1
        ticket.entered = True
        return ticket

    def _wait_s(self, ahead: int) -> float:
        """Until a call with so many ahead of it in the queue gets in, by estimate."""
        leaving_first = ahead + 1 + (0 if self.shadow else max(0, self.inflight - self.limit))
        return leaving_first * self.answer_s / self.limit

    def _too_late(self, ahead: int, ticket: Ticket, now_s: float) -> bool:
        """Whether it could not be answered in time: it has to get in, and to be worked on."""
        return now_s + self._wait_s(ahead) + self.answer_s > ticket.deadline_s

    def _refuse(self, ticket: Ticket, reason: Reason, ahead: int) -> Refusal:
        counts = self.would_refuse if self.shadow else self.refused
        counts[PRIORITIES[ticket.priority], reason] += 1
        return self._refusal(reason, self._wait_s(ahead))

    def _refusal(self, reason: Reason, wait_s: float) -> Refusal:
        retry_after_s = -1.0
        if reason == "OVERLOADED":
            # By then who waits now is in; spread, or all would come back at once.
            delay_s = (wait_s or UNMEASURED_S) * self._rng.uniform(1.0, 1.5)
            retry_after_s = min(LATEST_S, max(SOONEST_S, delay_s))
        return Refusal(
            reason=reason,
            waiting=self.waiting,
            wait_s=wait_s,
            retry_after_s=retry_after_s,
        )


def _ticket(
    priority: str, tenant: str, weight: float, *, joined_s: float, deadline_s: float
) -> Ticket:
    level = PRIORITIES.index(priority) if priority in PRIORITIES else 1
    return Ticket(
        tenant=tenant,
        weight=weight,
        level=level,
        priority=level,
        joined_s=joined_s,
        deadline_s=deadline_s,
    )
