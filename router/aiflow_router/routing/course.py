"""The course of calls to a model whose route splits them or has a fallback: who is asked, in turn.

Made when the configuration is; which endpoints a candidate has is looked up when it is its turn.
Only the asked model's route is followed: a candidate's own `split` and `fallback` are not, or two
routes could pass a call back and forth.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiflow_router.forwarding.retry import Budget, RetryPolicy
from aiflow_router.routing.fallback import Fallback
from aiflow_router.routing.policy import Policy
from aiflow_router.routing.split import OnStop, Sides

_rng = random.Random()  # noqa: S311 - spreads calls, guards nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A routed model.

    Attributes:
        name: what callers ask for.
        timeout_s: of a whole call, whoever answers.
        retry: the whole call may be tried again so often: `attempts` less one is how many tries
            there are beyond each candidate's first.
        budget: of the calls to this name, whoever they are sent to.
        sides: None without a split.
        fallback: None without one.
        chains: by first candidate, all of them in order.
    """

    name: str
    timeout_s: float
    retry: RetryPolicy
    budget: Budget
    sides: Sides | None = None
    fallback: Fallback | None = None
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        """Every model that may be asked."""
        return frozenset(name for chain in self.chains.values() for name in chain)


def courses(
    models: Mapping[str, Policy],
    on_stop: OnStop,
    *,
    previous: Mapping[str, Course] | None = None,
    rng: random.Random = _rng,
) -> dict[str, Course]:
    """Of the models that have one, by name.

    A split that is as it was in `previous` goes on with what is known of its sides.
    """
    before = previous or {}
    return {
        name: _course(name, policy, on_stop, before.get(name), rng)
        for name, policy in models.items()
        if policy.split is not None or policy.fallback is not None
    }


def _course(
    name: str, policy: Policy, on_stop: OnStop, before: Course | None, rng: random.Random
) -> Course:
    split, fallback, retry = policy.split, policy.fallback, policy.retry
    sides = None if before is None else before.sides
    if split is None:
        sides = None
    elif sides is None or sides.split != split:
        sides = Sides(model=name, split=split, rng=rng, on_stop=on_stop)
    firsts = {name, *(() if split is None else split.weights)}
    rest = () if fallback is None else fallback.to
    return Course(
        name=name,
        timeout_s=policy.timeout_s,
        retry=retry,
        budget=Budget(share=retry.budget, floor=retry.budget_floor),
        sides=sides,
        fallback=fallback,
        chains={first: (first, *(other for other in rest if other != first)) for first in firsts},
    )
