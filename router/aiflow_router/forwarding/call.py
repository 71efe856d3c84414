"""One call on its way: what was asked, what may be tried, and what has happened so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory
from aiflow_router.forwarding.metadata import SESSION, Pairs
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.retry import Budget
from aiflow_router.telemetry.trail import Note


@dataclass(slots=True, kw_only=True)
class Call:
    """Filled in by `sender` as the call proceeds; read by whoever answers and logs it.

    Attributes:
        method: full gRPC method, "/package.Service/Method".
        onward: metadata for the backend.
        deadline_s: on the event loop's clock; infinite where nobody set one.
        timed_here: that is the router's own, earlier than any that the caller set.
        attempts: endpoints tried so far.
        load: the endpoint tried last, or the one that answered.
        tried: endpoints that will not be tried again.
        backend_s: time spent waiting for backends.
        streamed_bytes: of a stream that has ended, in both directions.
        answers: messages of it that came from the backend.
        begun: its caller was sent initial metadata, so the backend's own goes with the trailing.
        sent: a backend may have begun to work on it.
        most: endpoints that may be tried; None: as many as the plan says.
        paid_by: the budget that its retries are taken from; None: the plan's.
        sent_s: when the attempt that is on its way began.
        because: why that one is made; empty for the first.
        notes: what went on, from the first attempt on that did not go well; None until then.
    """

    method: str
    plan: Plan
    onward: Pairs
    deadline_s: float
    timed_here: bool = False
    attempts: int = 0
    load: Load | None = None
    tried: list[Load] = field(default_factory=list)
    backend_s: float = 0.0
    streamed_bytes: int = 0
    answers: int = 0
    begun: bool = False
    sent_s: float = 0.0
    because: str = ""
    notes: list[Note] | None = None
    sent: bool = False
    most: int | None = None
    paid_by: Budget | None = None

    @property
    def limit(self) -> int:
        """Endpoints that may be tried."""
        return self.plan.retry.attempts if self.most is None else self.most

    @property
    def budget(self) -> Budget:
        return self.paid_by or self.plan.budget

    @property
    def memory(self) -> Memory:
        """What earlier calls to the same name left for the strategy."""
        return self.plan.memory

    @property
    def session(self) -> str:
        """Looked up when a strategy asks, which few do; the first counts."""
        return next((str(value) for name, value in self.onward if name == SESSION), "")

    def left_s(self, now_s: float) -> float | None:
        """Time to the deadline; None where there is none."""
        return None if self.deadline_s == math.inf else self.deadline_s - now_s

    def another(self) -> bool:
        """Whether one more endpoint may be tried, and there is one, be it in a bad state."""
        return self.attempts < self.limit and len(self.tried) < len(self.plan.loads)

    def elsewhere(self, now_s: float) -> bool:
        """Whether another endpoint than those asked so far is fit to be asked."""
        return self.plan.pool.another(now_s, [*self.tried, self.load])

    def try_due_s(self, now_s: float) -> float:
        """When the attempt that starts now must have its answer."""
        retry = self.plan.retry
        if retry.per_try_timeout_s is None or self.attempts >= self.limit:
            return self.deadline_s
        if not self.elsewhere(now_s):
            return self.deadline_s
        return min(self.deadline_s, now_s + retry.per_try_timeout_s)

    def attempted(self, outcome: str, now_s: float) -> None:
        """Notes how the attempt ended. Not to be asked for of a first one that went well."""
        self._note(
            Note(
                at_s=self.sent_s,
                took_s=now_s - self.sent_s,
                endpoint=self.served_by(),
                outcome=outcome,
                because=self.because,
            )
        )

    def decided(self, what: str, now_s: float) -> None:
        """Notes what was decided about further attempts."""
        self._note(Note(at_s=now_s, because=what))

    def _note(self, note: Note) -> None:
        if self.notes is None:
            self.notes = []
        self.notes.append(note)

    def served_by(self) -> str:
        """The model (else the backend) and the address; empty before the first pick."""
        if self.load is None:
            return ""
        endpoint = self.load.endpoint
        return f"{self.plan.name if self.plan.is_model else endpoint.backend}@{endpoint.address}"
