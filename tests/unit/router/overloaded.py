"""A backend in virtual time: so many calls at once, the rest in its own queue; and its callers."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from aiflow_router.limits.concurrency import End
from aiflow_router.limits.gate import Gate, Refusal, Ticket


@dataclass
class Seen:
    """What callers saw, call by call.

    `answered` are pairs of the time of arrival and the time until the answer, queues included.
    """

    answered: list[tuple[float, float]] = field(default_factory=list)
    late: int = 0
    refused: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)
    at_backend_s: list[tuple[float, float]] = field(default_factory=list)

    def good(self, since_s: float) -> int:
        return sum(1 for at_s, _ in self.answered if at_s >= since_s)


class Backend:
    """`slots(now_s)` calls at a time take `took_s(rng)` each."""

    def __init__(
        self,
        *,
        gate: Gate,
        slots: Callable[[float], int],
        took_s: Callable[[random.Random], float],
        deadline_s: float,
        rng: random.Random,
    ) -> None:
        self.seen = Seen()
        self._gate, self._slots, self._took_s = gate, slots, took_s
        self._deadline_s, self._rng = deadline_s, rng
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._ids = itertools.count()
        self._queue: list[tuple[float, float]] = []  # arrived, sent
        self._working = 0

    def at(self, when_s: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._ids), do))

    def run(self, *, arrivals: Callable[[float], float], until_s: float) -> Seen:
        """Calls come at random, `arrivals(now_s)` of them a second."""

        def arrive(now_s: float) -> None:
            self._call(now_s)
            after_s = now_s + self._rng.expovariate(arrivals(now_s))
            if after_s < until_s:
                self.at(after_s, arrive)

        self.at(0.0, arrive)
        while self._events:
            now_s, _, do = heapq.heappop(self._events)
            do(now_s)
        return self.seen

    def _call(self, now_s: float) -> None:
        if self._gate.try_enter():
            self._send(now_s, now_s)
            return
        ticket = self._gate.join(
            priority="normal", deadline_s=now_s + self._deadline_s, now_s=now_s
        )
        if isinstance(ticket, Refusal):
            self.seen.refused += 1
            return
        found: Ticket = ticket
        # The gate wakes in the middle of an event: what follows happens in the next one.
        found.wake = lambda: self.at(self._now_s, lambda at_s: self._woken(found, now_s, at_s))

    def _woken(self, ticket: Ticket, arrived_s: float, now_s: float) -> None:
        if ticket.refusal is not None:
            self.seen.refused += 1
        else:
            self._send(arrived_s, now_s)

    def _send(self, arrived_s: float, now_s: float) -> None:
        self._queue.append((arrived_s, now_s))
        self._work(now_s)

    def _work(self, now_s: float) -> None:
        while self._queue and self._working < self._slots(now_s):
            arrived_s, sent_s = self._queue.pop(0)
            self._working += 1
            self.at(
                now_s + self._took_s(self._rng),
                lambda at_s, a=arrived_s, s=sent_s: self._done(a, s, at_s),  # type: ignore[misc]
            )

    def _done(self, arrived_s: float, sent_s: float, now_s: float) -> None:
        self._now_s = now_s
        self._working -= 1
        in_time = now_s <= arrived_s + self._deadline_s
        self._gate.leave(End.ANSWERED if in_time else End.TIMED_OUT, now_s - sent_s, now_s)
        if in_time:
            self.seen.answered.append((arrived_s, now_s - arrived_s))
            self.seen.at_backend_s.append((arrived_s, now_s - sent_s))
        else:
            self.seen.late += 1
        self.seen.limits.append((now_s, self._gate.limit))
        self._work(now_s)
