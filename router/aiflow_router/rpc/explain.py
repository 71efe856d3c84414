"""`aiflow.admin.v1.ExplainService`: what the router would do with a call, and what it did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
import orjson
import structlog

from aiflow.admin.v1 import explain_pb2
from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.endpoint import Key
from aiflow_router.explaining.explainer import Explainer
from aiflow_router.explaining.explanation import (
    Candidate,
    Explanation,
    LimitView,
    Question,
    Refused,
    Standing,
)
from aiflow_router.explaining.limits import Limits
from aiflow_router.rpc.endpoints import STATES
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.registry import LIST, RELAY_WITHIN_S, Handlers, relay, typed
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.trail import NEWEST, NEWEST_NOTED, Trace
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

SERVICE = "aiflow.admin.v1.ExplainService"
EXPLAIN = f"/{SERVICE}/Explain"
REPLAY = f"/{SERVICE}/Replay"

# By endpoint: the worst state that a worker sees, and the calls of all.
Everywhere = Mapping[Key, registry_pb2.ListEndpointsResponse.Entry]


def handlers(front: Front, *, explainer: Explainer, limits: Limits, journal: Journal) -> Handlers:
    """The handlers by full method, of a router that is one process."""

    async def explain(request: explain_pb2.ExplainRequest) -> bytes:
        asked = question(request)
        told = await limits.met(explainer.explain(asked), asked)
        return to_proto(told).SerializeToString()

    async def replay(request: explain_pb2.ReplayRequest) -> bytes:
        return found(traces(journal, request.request_id), request.request_id)

    return {
        EXPLAIN: front.unary(
            EXPLAIN, typed(explain_pb2.ExplainRequest, explain), right="admin", label=SERVICE
        ),
        REPLAY: front.unary(
            REPLAY, typed(explain_pb2.ReplayRequest, replay), right="admin", label=SERVICE
        ),
    }


def shared(
    front: Front, *, explainer: Explainer, limits: Limits, owner: grpc.aio.Channel, worker: str
) -> Handlers:
    """The same for one of several workers, which explains for itself; its `owner` asks all."""

    async def explain(request: explain_pb2.ExplainRequest) -> bytes:
        asked = question(request)
        explanation = await limits.met(explainer.explain(asked), asked)
        answer = to_proto(explanation, worker=worker, everywhere=await _everywhere(owner))
        return answer.SerializeToString()

    return {
        EXPLAIN: front.unary(
            EXPLAIN, typed(explain_pb2.ExplainRequest, explain), right="admin", label=SERVICE
        ),
        REPLAY: front.unary(REPLAY, relay(owner, REPLAY), right="admin", label=SERVICE),
    }


async def _everywhere(owner: grpc.aio.Channel) -> Everywhere:
    ask: Any = owner.unary_unary(LIST)
    try:
        listed = registry_pb2.ListEndpointsResponse.FromString(
            await ask(b"", timeout=RELAY_WITHIN_S)
        )
    except grpc.aio.AioRpcError as error:
        _log.warning("explained without the other workers", error=error.details())
        return {}
    return {(entry.endpoint.backend, entry.endpoint.address): entry for entry in listed.entries}


def question(request: explain_pb2.ExplainRequest) -> Question:
    """Raises BadInputError."""
    wrong: dict[str, str] = {}
    if bool(request.model) == bool(request.service):
        wrong["model"] = "name either a model or a service"
    if request.method and not request.service:
        wrong["method"] = "is of a service: name that too"
    if request.priority not in ("", "high", "normal", "low"):
        wrong["priority"] = "must be high, normal or low"
    if not request.deadline_s >= 0:
        wrong["deadline_s"] = "must be 0 or more"
    if wrong:
        listed = "; ".join(f"{field}: {why}" for field, why in wrong.items())
        raise errors.BadInputError(f"this cannot be explained: {listed}", violations=wrong)
    return Question(
        kind="model" if request.model else "service",
        name=request.model or request.service,
        method=request.method.rpartition("/")[2],
        tenant=request.tenant,
        priority=request.priority,
        session=request.session,
        deadline_s=request.deadline_s or None,
        department=request.department,
        member=request.member,
        key=request.key,
    )


def to_proto(
    told: Explanation, *, worker: str = "", everywhere: Everywhere | None = None
) -> explain_pb2.ExplainResponse:
    answer = explain_pb2.ExplainResponse(
        worker=worker,
        policy_version=told.version,
        kind=told.kind,
        name=told.name,
        matched=told.matched,
        by_default=told.by_default,
        verdict=told.verdict,
    )
    for line in told.lines:
        answer.policy.add(topic=line.topic, says=line.says, by_default=line.by_default)
    answer.candidates.extend(_candidate(one, everywhere or {}) for one in told.candidates)
    for gate in told.gates:
        answer.gates.add(
            name=gate.name,
            calls=gate.calls,
            limit=gate.limit or 0,
            adaptive=gate.adaptive,
            shadow=gate.shadow,
            inflight=gate.inflight,
            waiting=gate.waiting,
            queue=gate.queue,
            answer_s=gate.answer_s,
            ahead=gate.ahead,
            wait_s=gate.wait_s,
        )
    if (budget := told.budget) is not None:
        answer.retry_budget.inflight = budget.inflight
        answer.retry_budget.retrying = budget.retrying
        answer.retry_budget.allowed = budget.allowed
        answer.retry_budget.left = budget.left
    answer.refusals.extend(map(_refusal, told.refused))
    answer.limits.extend(map(_limit, told.limits))
    return answer


def _limit(view: LimitView) -> explain_pb2.Limit:
    return explain_pb2.Limit(
        rule=view.rule,
        says=view.says,
        bucket=view.bucket,
        holds=view.holds,
        remaining=view.remaining,
        wait_s=-1.0 if view.wait_s == math.inf else view.wait_s,
        reset_s=view.reset_s,
        shadow=view.shadow,
        waits=view.waits,
        waiting=view.waiting,
        ahead=view.ahead,
        by=view.by,
    )


def _candidate(candidate: Candidate, everywhere: Everywhere) -> explain_pb2.Candidate:
    return explain_pb2.Candidate(
        name=candidate.name,
        role=candidate.role,
        endpoints=[_endpoint(one, everywhere) for one in candidate.endpoints],
        unlisted=candidate.unlisted,
        panic=candidate.panic,
    )


def _endpoint(standing: Standing, everywhere: Everywhere) -> explain_pb2.CandidateEndpoint:
    endpoint = standing.endpoint
    answer = explain_pb2.CandidateEndpoint(
        backend=endpoint.backend,
        address=endpoint.address,
        weight=endpoint.weight,
        zone=endpoint.zone,
        state=STATES[standing.state],
        why=standing.why,
        pickable=standing.pickable,
        changes_in_s=standing.changes_in_s or 0.0,
        warm=standing.warm,
        inflight=standing.inflight,
        expected_s=standing.expected_s or 0.0,
    )
    if (entry := everywhere.get(endpoint.key)) is not None:
        answer.worst_state = entry.state
        answer.inflight_of_all = entry.inflight
    return answer


def _refusal(refused: Refused) -> explain_pb2.CallRefusal:
    error = refused.error
    return explain_pb2.CallRefusal(
        when=refused.when,
        code=error.code,
        reason=error.reason,
        message=error.message,
        retry_after_s=error.retry_after_s or 0.0,
        shadow=refused.shadow,
        goes_on_to=refused.goes_on_to,
    )


def traces(journal: Journal, request_id: str) -> list[explain_pb2.Trace]:
    """What this process remembers, the newest first."""
    journal.settle()
    return [_trace(trace) for trace in journal.trail.find(request_id)]


def _trace(trace: Trace) -> explain_pb2.Trace:
    return explain_pb2.Trace(
        logged=orjson.dumps(trace.logged).decode(),
        queued_s=trace.queued_s,
        router_s=-1.0 if trace.router_s is None else trace.router_s,
        steps=[
            explain_pb2.TraceStep(
                at_s=at_s,
                took_s=note.took_s,
                endpoint=note.endpoint,
                outcome=note.outcome,
                because=note.because,
            )
            for at_s, note in trace.notes
        ],
    )


def _ended(trace: explain_pb2.Trace) -> str:
    """When, as text that sorts."""
    return str(orjson.loads(trace.logged)["timestamp"])


def found(traces: Iterable[explain_pb2.Trace], request_id: str) -> bytes:
    """The answer. Raises NotFoundError."""
    answer = explain_pb2.ReplayResponse(traces=sorted(traces, key=_ended, reverse=True))
    if not answer.traces:
        raise errors.NotFoundError(
            f'no call with request id "{request_id[:128]}" is remembered: each worker remembers '
            f"its newest {NEWEST} calls, and {NEWEST_NOTED} that failed or were tried more than "
            "once; the access log has the others",
            reason="REQUEST_NOT_FOUND",
        )
    return answer.SerializeToString()
