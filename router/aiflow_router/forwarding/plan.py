"""Everything that is decided about calls to one model or service before one comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.pick import Pick
from aiflow_router.balancing.pool import Pool
from aiflow_router.forwarding.hedge import Hedge
from aiflow_router.forwarding.retry import Budget, RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Made by `routing` when the catalog changes.

    Attributes:
        name: the model or service.
        is_model: which of the two.
        loads: the endpoints that take new calls, never none.
        pool: which of them may be picked now.
        timeout_s: of a call with one request and one answer.
        memory: for `pick`; this, `budget` and `hedge` are the name's, so they outlive the plan.
        hedge: None where a route asks for none.
    """

    name: str
    is_model: bool
    loads: Sequence[Load]
    pool: Pool
    timeout_s: float
    pick: Pick
    memory: Memory = field(default_factory=Memory)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: Budget = field(default_factory=Budget)
    hedge: Hedge | None = None
