"""One call on its way: what was asked, what may be tried, and what has happened so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.pick import Pick
from aiflow_router.forwarding.metadata import SESSION, Pairs


@dataclass(slots=True, kw_only=True)
class Call:
    """Filled in by `sender` as the call proceeds; read by whoever answers and logs it.

    Attributes:
        method: full gRPC method, "/package.Service/Method".
        name: the model or service asked for.
        onward: metadata for the backend.
        deadline_s: on the event loop's clock; infinite where nobody set one.
        loads: the endpoints that can answer.
        max_attempts: endpoints that may be tried, the first included.
        is_model: whether `name` is a model's.
        memory: what earlier calls to `name` left for `pick`.
        attempts: endpoints tried so far.
        load: the endpoint tried last.
        tried: endpoints that will not be tried again.
        backend_s: time spent waiting for backends.
    """

    method: str
    name: str
    onward: Pairs
    deadline_s: float
    loads: Sequence[Load]
    pick: Pick
    max_attempts: int
    is_model: bool
    memory: Memory
    attempts: int = 0
    load: Load | None = None
    tried: list[Load] = field(default_factory=list)
    backend_s: float = 0.0

    @property
    def session(self) -> str:
        """Looked up when a strategy asks, which few do; the first counts."""
        return next((str(value) for name, value in self.onward if name == SESSION), "")

    def left_s(self, now_s: float) -> float | None:
        """Time to the deadline; None where there is none."""
        return None if self.deadline_s == math.inf else self.deadline_s - now_s

    def served_by(self) -> str:
        """The model (else the backend) and the address; empty before the first pick."""
        if self.load is None:
            return ""
        endpoint = self.load.endpoint
        return f"{self.name if self.is_model else endpoint.backend}@{endpoint.address}"
