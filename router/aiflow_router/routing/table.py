"""The routing table: a plan for each model and service, made when the catalog changes.

Nothing is decided when a call comes that could be decided before.
"""

from __future__ import annotations

import difflib
import itertools
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from aiflow_router.balancing.filling import Filling
from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.pick import PICKS, STEADY, TIMED
from aiflow_router.balancing.pool import Pool, Preference
from aiflow_router.catalog.endpoint import Key, Protocol
from aiflow_router.catalog.snapshot import Change, Moves, Served, Snapshot
from aiflow_router.forwarding.hedge import Hedge
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.retry import Budget, RetryPolicy
from aiflow_router.limits.overload import DEFAULT, Gates, Overload, gates
from aiflow_sdk import errors

# A name is known this long after its last endpoint left: its caller is told to wait, not that it
# is wrong.
REMEMBER_S = 600.0
MAX_REMEMBERED = 10_000
# More than can leave with one snapshot.
FORGET_AT_ONCE = 1000
# To find the names nearest to an unknown one: how many are read, and how many compared.
MAX_LOOKED_AT = 20_000
MAX_COMPARED = 200
ALIKE = 3

_rng = random.Random()  # noqa: S311 - spreads delays, guards nothing


Kind = Literal["model", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How calls to one model or service are treated.

    Attributes:
        balance: a name in PICKS.
        hedge_after_s: where it is hedged: None means after the 95th percentile.
        latency_aim_s: for `batch_aware`; None with any other.
    """

    timeout_s: float = 15.0
    balance: str = "least_request"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    hedged: bool = False
    hedge_after_s: float | None = None
    overload: Overload = DEFAULT
    latency_aim_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedPlan(Plan):
    """A plan, and the gates by which its calls go in: the name's, so they outlive the plan."""

    gates: Gates


class Table:
    """The plans by name; `models` and `services` are the policies of routes, by name."""

    def __init__(
        self,
        *,
        loads: Loads,
        models: Mapping[str, Policy],
        services: Mapping[str, Policy],
        default: Policy,
        clock: Callable[[], float],
        preference: Preference | None = None,
    ) -> None:
        self._loads = loads
        self._clock = clock
        self.default = default

        def pool(found: Sequence[Load], balance: str) -> Pool:
            return Pool(
                found,
                changes=loads.changes,
                preference=preference,
                steady=balance in STEADY,
            )

        self._models = _Names("model", models, default, clock, pool)
        self._services = _Names("service", services, default, clock, pool)
        self._oip: dict[Key, Load] = {}

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        self._models.follow(snapshot.models, change.models, self._loads)
        self._services.follow(snapshot.services, change.services, self._loads)
        for key in change.gone:
            self._oip.pop(key, None)
        for key, entry in change.put.items():
            if entry.ready() and entry.endpoint.protocol is Protocol.OIP:
                self._oip[key] = self._loads.at(key)
            else:
                self._oip.pop(key, None)

    def model(self, name: str) -> GatedPlan:
        """Raises BadInputError, ModelNotFoundError, NoEndpointError."""
        plan = self._models.plans.get(name)
        if plan is not None:
            return plan
        if not name:
            raise errors.BadInputError(
                "the request names no model",
                violations={"model_name": "is empty; name the model to call"},
            )
        raise self._models.missing(name)

    def service(self, name: str) -> GatedPlan:
        """Raises ServiceNotFoundError, NoEndpointError."""
        plan = self._services.plans.get(name)
        if plan is not None:
            return plan
        raise self._services.missing(name)

    def policy(self, kind: Kind, name: str) -> Policy | None:
        """The policy of the route that matches `name`; None where the default applies."""
        return self._names(kind).policy(name)

    def found(self, kind: Kind, name: str) -> GatedPlan:
        """The plan of a model or a service. Raises as `model` and `service`."""
        return self.model(name) if kind == "model" else self.service(name)

    def _names(self, kind: Kind) -> _Names:
        return self._models if kind == "model" else self._services

    def every_oip(self) -> tuple[Plan, ...]:
        """One plan for each endpoint that speaks the Open Inference Protocol."""
        seen: dict[str, Load] = {load.endpoint.address: load for load in self._oip.values()}
        return tuple(
            Plan(
                name=load.endpoint.backend,
                is_model=False,
                loads=(load,),
                pool=Pool((load,), changes=self._loads.changes),
                timeout_s=self.default.timeout_s,
                pick=PICKS[self.default.balance],
                retry=RetryPolicy(attempts=1),
            )
            for load in seen.values()
        )

    def gates(self) -> Iterable[tuple[str, Gates]]:
        """With the name of each; a model and a service may have the same."""
        return itertools.chain(self._models.gates.items(), self._services.gates.items())

    def fillings(self) -> tuple[Filling, ...]:
        """Of the models in the catalog that are balanced by their batches."""
        memories = (plan.memory for plan in self._models.plans.values())
        return tuple(memory.filling for memory in memories if memory.filling is not None)

    def services(self) -> frozenset[str]:
        """The services in the catalog."""
        return frozenset(self._services.catalogued)

    def nearest_services(self, name: str) -> list[GatedPlan]:
        """One plan for each backend of services, nearest first.

        Near is whose service shares most of the dotted `name` from its start.
        """
        wanted = name.split(".")

        def shared(plan: GatedPlan) -> int:
            pairs = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(plan.name.split("."), wanted, strict=False)
            )
            return sum(1 for _ in pairs)

        by_backend: dict[str, GatedPlan] = {}
        for plan in sorted(self._services.plans.values(), key=shared, reverse=True):
            by_backend.setdefault(plan.loads[0].endpoint.backend, plan)
        return list(by_backend.values())

    def panics(self) -> Mapping[str, int]:
        """By backend, how many models and services have no endpoint that is fit and use all."""
        now_s = self._clock()
        found: Counter[str] = Counter()
        for plans in (self._models.plans, self._services.plans):
            for plan in plans.values():
                found[plan.loads[0].endpoint.backend] += plan.pool.panics(now_s)
        return found

    def knows_model(self, name: str) -> bool:
        return self._models.knows(name)

    def knows_service(self, name: str) -> bool:
        return self._services.knows(name)


class _Names:
    """The plans of one kind of name, and what is remembered of names that have none now."""

    def __init__(
        self,
        kind: str,
        policies: Mapping[str, Policy],
        default: Policy,
        clock: Callable[[], float],
        pool: Callable[[Sequence[Load], str], Pool],
    ) -> None:
        self._kind = kind
        self._pool = pool
        self._policies = policies
        self._default = default
        self._clock = clock
        self.catalogued: Served = {}
        self._left_at_s: OrderedDict[str, float] = OrderedDict()
        # Changed in place: a call takes one plan and keeps it, so nobody sees half a change.
        self.plans: dict[str, GatedPlan] = {}
        self.gates: dict[str, Gates] = {}
        self._members: dict[str, dict[Key, Load]] = {}

    def follow(self, served: Served, moved: Mapping[str, Moves], loads: Loads) -> None:
        """Makes new plans for the names that `moved`."""
        self.catalogued = served
        for name, moves in moved.items():
            members = self._members.setdefault(name, {})
            left = [
                members.pop(key) for key, joins in moves.items() if not joins and key in members
            ]
            joined = [loads.at(key) for key, joins in moves.items() if joins]
            members.update((load.endpoint.key, load) for load in joined)
            if members:
                self.plans[name] = self._plan(name, members, joined, left)
            else:
                self.plans.pop(name, None)
                del self._members[name]
            self._left_at_s.pop(name, None)
            if name not in served:
                self._left_at_s[name] = self._clock()
        self._forget()

    def _forget(self) -> None:
        """Names that left long ago, or too many names ago, unless calls of one are still inside."""
        now_s = self._clock()
        for _ in range(min(FORGET_AT_ONCE, len(self._left_at_s))):
            name, at_s = next(iter(self._left_at_s.items()))
            if at_s > now_s - REMEMBER_S and len(self._left_at_s) <= MAX_REMEMBERED:
                break
            del self._left_at_s[name]
            if name in self._policies or name not in self.gates:
                continue
            if self.gates[name].idle():
                del self.gates[name]
            else:
                self._left_at_s[name] = now_s

    def policy(self, name: str) -> Policy | None:
        return self._policies.get(name)

    def knows(self, name: str) -> bool:
        return (
            name in self.catalogued
            or name in self._policies
            or self._left_at_s.get(name, float("-inf")) > self._clock() - REMEMBER_S
        )

    def missing(self, name: str) -> errors.AiflowError:
        """Why there is no plan for `name`."""
        if self.knows(name):
            return errors.NoEndpointError(
                f'no endpoint serves {self._kind} "{name}" right now: try again shortly, or start '
                "a server for it",
                retry_after_s=1.0,
                metadata={self._kind: name},
            )
        nearest = _nearest(name, itertools.chain(self._policies, self.catalogued))
        hint = (
            f"did you mean {' or '.join(nearest)}?" if nearest else "`aiflow status` lists them all"
        )
        cls = errors.ModelNotFoundError if self._kind == "model" else errors.ServiceNotFoundError
        return cls(
            f'there is no {self._kind} "{name[:256]}": {hint}',
            metadata={self._kind: name[:256], "nearest": ",".join(nearest)},
        )

    def _plan(
        self, name: str, members: Mapping[Key, Load], joined: Iterable[Load], left: Iterable[Load]
    ) -> GatedPlan:
        policy = self._policies.get(name, self._default)
        loads = tuple(members.values())
        pool = self._pool(loads, policy.balance)
        previous = self.plans.get(name)
        if previous is not None:
            previous.memory.follow(joined=joined, left=left)
            return replace(previous, loads=loads, pool=pool)
        memory = _memory(name, policy)
        memory.follow(joined=joined, left=left)
        if name not in self.gates:
            self.gates[name] = gates(policy.overload, _rng)
        return GatedPlan(
            name=name,
            is_model=self._kind == "model",
            loads=loads,
            pool=pool,
            timeout_s=policy.timeout_s,
            pick=PICKS[policy.balance],
            memory=memory,
            retry=policy.retry,
            budget=Budget(share=policy.retry.budget, floor=policy.retry.budget_floor),
            hedge=Hedge(after_s=policy.hedge_after_s) if policy.hedged else None,
            gates=self.gates[name],
        )


def _memory(name: str, policy: Policy) -> Memory:
    memory = Memory(timed=policy.balance in TIMED)
    if policy.latency_aim_s is not None:
        memory.filling = Filling(model=name, aim_s=policy.latency_aim_s)
    return memory


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    # Comparing costs the product of the lengths: a huge name is nobody's typing error.
    if len(name) > 256:
        return []
    # And some 10 us a name, all of it while no other call moves on: of many names only those are
    # compared that begin or end as this one does, which is where typing errors mostly are not.
    alike = list(dict.fromkeys(itertools.islice(known, MAX_LOOKED_AT)))
    if len(alike) > MAX_COMPARED:
        start, end = name[:ALIKE], name[-ALIKE:]
        alike = [other for other in alike if other.startswith(start) or other.endswith(end)]
    return difflib.get_close_matches(name, alike[:MAX_COMPARED], n=3, cutoff=0.6)
