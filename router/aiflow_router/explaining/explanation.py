"""What is said about a call that somebody asks about, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiflow_router.catalog.endpoint import Endpoint, State
from aiflow_router.routing.policy import Kind
from aiflow_sdk import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call that might come.

    Attributes:
        kind, name: the model or service that it asks for.
        method: of a service, without the service's name; empty where any is meant.
        deadline_s: how long its caller would wait; None for as long as the route lets it.
        department, member, key: of the tenant, for limits that each of them has.
    """

    kind: Kind
    name: str
    method: str = ""
    tenant: str = ""
    priority: str = ""
    session: str = ""
    deadline_s: float | None = None
    department: str = ""
    member: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One part of the policy.

    Attributes:
        topic: as its key in aiflow.yaml.
        says: what it means for the call.
        by_default: nobody configured it otherwise.
    """

    topic: str
    says: str
    by_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One endpoint as this process sees it.

    Attributes:
        state: its own, or where that is READY what keeps it out.
        why: what that state, or its part of the calls, comes from; empty for nothing special.
        pickable: whether the next call may go there.
        changes_in_s: until the state is looked at again; None where no time is set.
        warm: its part of its share while it starts slowly, 0 to 1.
        expected_s: when an answer is expected, where the strategy keeps count.
    """

    endpoint: Endpoint
    state: State
    why: str = ""
    pickable: bool
    changes_in_s: float | None = None
    warm: float = 1.0
    inflight: int = 0
    expected_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A name that the call may be answered under, in the order in which they are tried.

    Attributes:
        role: why it is one.
        endpoints: those that cannot be picked first, then the busiest.
        unlisted: how many more there are, all of them pickable.
        panic: none is fit, so all are used.
    """

    name: str
    role: str
    endpoints: tuple[Standing, ...]
    unlisted: int = 0
    panic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    """A gate before a candidate.

    Attributes:
        name: the candidate's.
        calls: which calls go through it.
        limit: how many may be inside now; None without a limit.
        adaptive: the limit moves by itself.
        shadow: nobody waits or is refused, it is only counted.
        answer_s: how long answers take lately; 0 before the first.
        ahead: calls that would go in before this one.
        wait_s: how long this one would wait, by estimate.
    """

    name: str
    calls: str
    limit: int | None
    adaptive: bool
    shadow: bool
    inflight: int
    waiting: int
    queue: int
    answer_s: float
    ahead: int
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """A limit that the call would meet.

    Attributes:
        says: what it allows, in words.
        bucket: whose, "gpt|acme".
        holds: the most that there ever is.
        wait_s: until there is enough for the call; 0 where there is, infinite where never.
        reset_s: until all of it is there again.
        shadow: it would only count.
        waits: a call that finds too little waits.
        waiting: calls that do, of everybody.
        ahead: those that would be served before this one.
        by: who knows what is left: this process, Redis, or what stands in for it.
    """

    rule: str
    says: str
    bucket: str
    holds: float
    remaining: float
    wait_s: float
    reset_s: float
    shadow: bool
    waits: bool
    waiting: int
    ahead: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """Retries and hedges: `left` of `allowed` more may be made now, with `inflight` calls."""

    inflight: int
    retrying: int
    allowed: int

    @property
    def left(self) -> int:
        return max(0, self.allowed - self.retrying)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What a call would be told instead of an answer.

    Attributes:
        when: which calls.
        shadow: it would only be counted.
        goes_on_to: the candidate that is asked instead; empty where the caller is told.
    """

    when: str
    error: errors.AiflowError
    shadow: bool = False
    goes_on_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All of it.

    Attributes:
        version: of the policy that is in force.
        matched: how the route was found.
        by_default: no route matches, so the defaults hold.
        verdict: what would become of the call now, in a sentence.
        refused: empty where every call would go in.
        limits: that match the call, in the order of the policy.
    """

    kind: Kind
    name: str
    version: str
    matched: str
    by_default: bool
    verdict: str
    lines: tuple[Line, ...]
    candidates: tuple[Candidate, ...] = ()
    gates: tuple[GateView, ...] = ()
    budget: BudgetView | None = None
    refused: tuple[Refused, ...] = field(default=())
    limits: tuple[LimitView, ...] = ()
