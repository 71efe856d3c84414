"""The routing table: a plan for each model and service, made when catalog or policies change.

Nothing is decided when a call comes that could be decided before.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from aiflow_router.balancing.filling import Filling
from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.pick import PICKS, STEADY
from aiflow_router.balancing.pool import Pool, Preference
from aiflow_router.caching.cache import Cache
from aiflow_router.catalog.endpoint import Key, Protocol
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.forwarding.metadata import POLICY_VERSION, Pair
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.limits.overload import Gates
from aiflow_router.routing.course import Course, courses
from aiflow_router.routing.names import GatedPlan, Names
from aiflow_router.routing.policy import Kind, Policies, Policy
from aiflow_router.routing.split import OnStop, nobody_told
from aiflow_sdk import errors

# Of a swap, the names that are made at once, some 30 us each, and what calls have in between.
SLICE_NAMES = 100
SLICE_GAP_S = 0.003

__all__ = ["GatedPlan", "Policies", "Policy", "Table"]


class Table:
    """The plans by name.

    Attributes:
        default: of names that no route has.
        stamp: the trailer that tells the version of the policies in force.
        courses: by name, of the models whose routes say more than where to: see `Course`.
    """

    def __init__(
        self,
        *,
        loads: Loads,
        policies: Policies,
        default: Policy,
        clock: Callable[[], float],
        preference: Preference | None = None,
        on_stop: OnStop = nobody_told,
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

        self.stamp: Pair = (POLICY_VERSION, policies.version)
        self._models = Names("model", policies.models, default, clock, pool)
        self._services = Names("service", policies.services, default, clock, pool)
        self._on_stop = on_stop
        self.courses: Mapping[str, Course] = courses(policies.models, on_stop)
        self._models.mention(self.courses.values())
        self._oip: dict[Key, Load] = {}

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        self._models.follow(snapshot.models, change.models, self._loads)
        self._services.follow(snapshot.services, change.services, self._loads)
        self._models.look_at_versions(change)
        for key in change.gone:
            self._oip.pop(key, None)
        for key, entry in change.put.items():
            if entry.ready() and entry.endpoint.protocol is Protocol.OIP:
                self._oip[key] = self._loads.at(key)
            else:
                self._oip.pop(key, None)

    async def swap(self, policies: Policies) -> None:
        """Lets new calls go by `policies`, all in the same moment; one swap at a time.

        Calls in flight end by the plans they began with. What is remembered of a name stays where
        the settings it follows from do. New plans are made beside those in use, a few at once, so
        that calls move on meanwhile.
        """
        both = (self._models, self._services)
        try:
            self._models.prepare(policies.models)
            self._services.prepare(policies.services)
            # Names may move in the catalog while others are made, and are made again then.
            while not all(names.make(SLICE_NAMES) for names in both):  # noqa: ASYNC110 - works
                await asyncio.sleep(SLICE_GAP_S)
            found = courses(policies.models, self._on_stop, previous=self.courses)
            for names in both:
                names.begin()
            self.courses = found
            self._models.mention(found.values())
            self.stamp = (POLICY_VERSION, policies.version)
        finally:
            for names in both:
                names.end()

    def model(self, name: str) -> GatedPlan:
        """The plan for `name` itself, whatever its course.

        Raises BadInputError, ModelNotFoundError, NoEndpointError.
        """
        plan = self._models.plans.get(name)
        if plan is not None:
            return plan
        if not name:
            raise errors.BadInputError(
                "the request names no model",
                violations={"model_name": "is empty; name the model to call"},
            )
        raise self._models.missing(name)

    def planned(self, name: str) -> GatedPlan | None:
        """The plan for a model, where it is served."""
        return self._models.plans.get(name)

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

    def _names(self, kind: Kind) -> Names:
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

    def split_shares(self) -> Mapping[str, Mapping[str, float]]:
        """What part of new calls goes where, by model, of those that are split."""
        return {
            name: found.sides.shares()
            for name, found in self.courses.items()
            if found.sides is not None
        }

    def caches(self) -> Iterable[tuple[str, Cache]]:
        """With the model of each."""
        return self._models.caches.items()

    def fillings(self) -> tuple[Filling, ...]:
        """Of the models in the catalog that are balanced by their batches."""
        memories = (plan.memory for plan in self._models.plans.values())
        return tuple(memory.filling for memory in memories if memory.filling is not None)

    def serves(self, name: str) -> bool:
        """Whether there is an endpoint for the model."""
        return name in self._models.plans

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
