"""The plans of one kind of name, and what is remembered of names that have none now."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from aiflow_router.balancing.filling import Filling
from aiflow_router.balancing.load import Load, Loads
from aiflow_router.balancing.memory import Memory
from aiflow_router.balancing.pick import PICKS, TIMED
from aiflow_router.balancing.pool import Pool
from aiflow_router.caching.cache import Cache, CacheRule
from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.snapshot import Change, Moves, Served
from aiflow_router.forwarding.hedge import Hedge
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.retry import Budget
from aiflow_router.limits.overload import Gates, Succession, gates, succeeding
from aiflow_router.routing.course import Course
from aiflow_router.routing.nearest import nearest as nearest_names
from aiflow_router.routing.policy import Policy
from aiflow_router.routing.shadow import ShadowRule
from aiflow_sdk import errors

# A name is known this long after its last endpoint left: its caller is told to wait, not that it
# is wrong.
REMEMBER_S = 600.0
MAX_REMEMBERED = 10_000
# More than can leave with one snapshot.
FORGET_AT_ONCE = 1000

_rng = random.Random()  # noqa: S311 - spreads delays, guards nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedPlan(Plan):
    """A plan, and what is the name's and so outlives the plan.

    Attributes:
        gates: by which its calls go in.
        cache: None where its answers are not to be given again.
        version: of the model behind that cache, as its endpoints say it.
        shadow: None where no other model gets copies of its calls.
    """

    gates: Gates
    cache: Cache | None = None
    version: str = ""
    shadow: ShadowRule | None = None


class Names:
    """Plans are changed in two ways: by the catalog at once, by other policies in a swap.

    Attributes:
        catalogued: who serves which name.
        plans: of names with endpoints.
        gates: of names that have a plan or had one lately.
        caches: of names whose policies ask for one, from their first plan on.
    """

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
        self.caches: dict[str, Cache] = {}
        self._members: dict[str, dict[Key, Load]] = {}
        # While a swap is prepared: what comes next, what was made for it, and what is to be made.
        self._next: Mapping[str, Policy] | None = None
        self._made: dict[str, _Made] = {}
        self._unmade: dict[str, None] = {}
        self._mentioned: frozenset[str] = frozenset()

    def mention(self, courses: Iterable[Course]) -> None:
        """The names that routes send calls to are known, whether anything serves them or not."""
        self._mentioned = frozenset(name for course in courses for name in course.names())

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
                self._put(name, self._plan(name, members, joined, left))
            else:
                self.plans.pop(name, None)
                del self._members[name]
            self._left_at_s.pop(name, None)
            if name not in served:
                self._left_at_s[name] = self._clock()
        if self._next is not None:
            self._unmade.update(dict.fromkeys(moved))
        self._forget()

    def look_at_versions(self, change: Change) -> None:
        """An endpoint that registers again with the same names moves none of them."""
        if not self.caches:
            return
        named = {name for entry in change.put.values() for name in entry.endpoint.models}
        for name in named & self.caches.keys():
            plan = self.plans.get(name)
            if plan is not None and (version := _version(plan.loads)) != plan.version:
                self.plans[name] = replace(plan, version=version)

    def prepare(self, policies: Mapping[str, Policy]) -> None:
        self._next = policies
        self._made = {}
        self._unmade = dict.fromkeys(itertools.chain(self._policies, policies))

    def make(self, count: int) -> bool:
        """Makes what `count` names need for the next policies; whether all is made."""
        assert self._next is not None  # noqa: S101 - prepared
        for _ in range(min(count, len(self._unmade))):
            name, _ = self._unmade.popitem()
            self._made.pop(name, None)
            old = self._policies.get(name, self._default)
            new = self._next.get(name, self._default)
            if new != old and name in self.gates:
                self._made[name] = self._make(name, old, new)
        return not self._unmade

    def _make(self, name: str, old: Policy, new: Policy) -> _Made:
        found = self.gates[name]
        follows = Succession(gates=found)
        if new.overload != old.overload:
            follows = succeeding(found, new.overload, _rng)
        plan = self.plans.get(name)
        if plan is None:
            return _Made(plan=None, gates=follows)
        memory, pool, budget, hedge = plan.memory, plan.pool, plan.budget, plan.hedge
        if (new.balance, new.latency_aim_s) != (old.balance, old.latency_aim_s):
            memory = _memory(name, new)
            memory.follow(joined=plan.loads, left=())
            pool = self._pool(plan.loads, new.balance)
        if (new.retry.budget, new.retry.budget_floor) != (budget.share, budget.floor):
            budget = _budget(new)
        if _hedging(new) != _hedging(old):
            hedge = _hedge(new)
        made = self._planned(
            name,
            new,
            loads=plan.loads,
            pool=pool,
            memory=memory,
            budget=budget,
            hedge=hedge,
            gates=follows.gates,
        )
        return _Made(plan=made, gates=follows)

    def begin(self) -> None:
        """Puts what was made in the place of what there is."""
        assert self._next is not None  # noqa: S101 - prepared
        now_s = self._clock()
        for name, made in self._made.items():
            if name in self.gates:  # Else it was forgotten meanwhile.
                self.gates[name] = made.gates.begin(now_s)
            if made.plan is not None:
                # Endpoints may have come under another version since it was made.
                cached = made.plan.cache is not None
                version = _version(made.plan.loads) if cached else ""
                self._put(name, replace(made.plan, version=version))
        for name in self._policies.keys() - self._next.keys():
            # A route kept it known; from here on only its having been served does.
            if name in self.gates and name not in self.catalogued:
                self._left_at_s[name] = now_s
        self._policies = self._next
        for name in [*self.caches]:
            if self._policies.get(name, self._default).cache != self.caches[name].rule:
                del self.caches[name]

    def end(self) -> None:
        """There is nothing to prepare any more."""
        self._next = None
        self._made = {}
        self._unmade = {}

    def _put(self, name: str, plan: GatedPlan) -> None:
        self.plans[name] = plan
        if plan.cache is not None:
            self.caches[name] = plan.cache

    def _cache(self, name: str, rule: CacheRule | None) -> Cache | None:
        """The name's where it is by this rule, else a new one."""
        if rule is None:
            return None
        cache = self.caches.get(name)
        return cache if cache is not None and cache.rule == rule else Cache(rule, clock=self._clock)

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
            or name in self._mentioned
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
        nearest = nearest_names(name, itertools.chain(self._policies, self.catalogued))
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
            version = "" if previous.cache is None else _version(loads)
            return replace(previous, loads=loads, pool=pool, version=version)
        memory = _memory(name, policy)
        memory.follow(joined=joined, left=left)
        if name not in self.gates:
            self.gates[name] = gates(policy.overload, _rng)
        return self._planned(
            name,
            policy,
            loads=loads,
            pool=pool,
            memory=memory,
            budget=_budget(policy),
            hedge=_hedge(policy),
            gates=self.gates[name],
        )

    def _planned(
        self,
        name: str,
        policy: Policy,
        *,
        loads: Sequence[Load],
        pool: Pool,
        memory: Memory,
        budget: Budget,
        hedge: Hedge | None,
        gates: Gates,
    ) -> GatedPlan:
        """The plan by `policy` with what is remembered of the name."""
        return GatedPlan(
            name=name,
            is_model=self._kind == "model",
            loads=loads,
            pool=pool,
            timeout_s=policy.timeout_s,
            pick=PICKS[policy.balance],
            memory=memory,
            retry=policy.retry,
            budget=budget,
            hedge=hedge,
            gates=gates,
            cache=self._cache(name, policy.cache),
            version="" if policy.cache is None else _version(loads),
            shadow=policy.shadow,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What a name gets with the next policies; no plan where it has no endpoint."""

    plan: GatedPlan | None
    gates: Succession


def _budget(policy: Policy) -> Budget:
    return Budget(share=policy.retry.budget, floor=policy.retry.budget_floor)


def _hedge(policy: Policy) -> Hedge | None:
    if not policy.hedged:
        return None
    return Hedge(after_s=policy.hedge_after_s, shadow=policy.hedge_shadow)


def _hedging(policy: Policy) -> tuple[bool, float | None, bool]:
    return policy.hedged, policy.hedge_after_s, policy.hedge_shadow


def _version(loads: Iterable[Load]) -> str:
    """What all the endpoints say of their version: with a new one no older answer is given."""
    return repr(sorted({load.endpoint.version for load in loads}))


def _memory(name: str, policy: Policy) -> Memory:
    memory = Memory(timed=policy.balance in TIMED)
    if policy.latency_aim_s is not None:
        memory.filling = Filling(model=name, aim_s=policy.latency_aim_s)
    return memory
