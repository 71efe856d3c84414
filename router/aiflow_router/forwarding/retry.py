"""When a call is tried again: how long to wait first, and how many may be retrying at once."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Envoy's default base interval and ten times it (RetryPolicy.RetryBackOff).
BASE_BACKOFF_S = 0.025
MAX_BACKOFF_S = 0.25
# A server that asks for a longer pause is obeyed by the caller, who is told, and not by a call that
# waits in here.
MAX_PUSHBACK_S = 1.0
# How long a retry waits for its share of the budget before its call fails with what it had.
BUDGET_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How calls to one model or service are tried again.

    Attributes:
        attempts: endpoints that may be tried, the first included; 1 in shadow.
        shadow: retries are counted and not made; the budget is then for hedges alone.
        per_try_timeout_s: how long a try may take while another one could follow; None: as long as
            the call.
        budget: share of the calls in flight that may be retrying at once.
        budget_floor: this many may, however few calls there are.
    """

    attempts: int = 2
    per_try_timeout_s: float | None = None
    budget: float = 0.2
    budget_floor: int = 3
    shadow: bool = False


@dataclass(slots=True, kw_only=True)
class Budget:
    """Keeps retries and hedges from multiplying the load of a backend that is in trouble.

    As Envoy's `retry_budget` (cluster.CircuitBreakers.Thresholds.RetryBudget).

    Attributes:
        active: calls in flight.
        retrying: of them those whose attempt is not their first.
    """

    share: float = 0.2
    floor: int = 3
    active: int = 0
    retrying: int = 0

    def take(self) -> bool:
        """Takes a place for one more retry, to be given back; False where none is left."""
        if self.retrying >= max(self.floor, self.share * self.active):
            return False
        self.retrying += 1
        return True

    def give_back(self) -> None:
        self.retrying -= 1


def backoff_s(retry: int, rng: random.Random) -> float:
    """How long to wait before the `retry`-th retry (1, 2 ...): full jitter, so none come in step.

    M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    return rng.random() * min(BASE_BACKOFF_S * 2.0 ** (retry - 1), MAX_BACKOFF_S)
