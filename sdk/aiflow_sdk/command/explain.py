"""`aiflow explain`: what the router would do with a call, or what it did with one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc
from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.client import Client
from aiflow_sdk.command.options import calls_router

# Less than this is no waiting: the call was refused at once.
SHOWN_FROM_S = 1e-4
_COLOURS = {"READY": "green", "DRAINING": "yellow"}


@click.command()
@click.argument("request_id", required=False)
@click.option("--model", help="Of a call to this model.")
@click.option("--service", help="Of a call to this service, by its full name.")
@click.option("--method", help="With --service: of this method.")
@click.option("--tenant", help="Whose call it would be.")
@click.option("--department", help="Of the tenant, for limits that each department has.")
@click.option("--member", help="Of the tenant, for limits that each member has.")
@click.option("--key", help="The id of its key, for limits that each key has.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Its priority.")
@click.option("--session", help="Its session.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long its caller would wait; as long as the route lets it otherwise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@calls_router
def explain(*, client: Client, request_id: str | None, as_json: bool, **asked: Any) -> None:
    """Show what the router would do with a call, without sending one.

    With a REQUEST_ID: what became of a recent call. Exits with 1 where the name or the call is not
    known to the router.
    """
    console = Console(soft_wrap=False)
    given = {name: value for name, value in asked.items() if value is not None}
    stub = client.stub(explain_pb2_grpc.ExplainServiceStub, idempotent=True)
    if request_id is not None:
        if given:
            raise click.UsageError("A REQUEST_ID says it all: give no other option with it.")
        replay = stub.Replay(explain_pb2.ReplayRequest(request_id=request_id))
        if as_json:
            _print_json(replay, logged=True)
            return
        for trace in replay.traces:
            _print_trace(console, trace)
        return
    if ("model" in given) == ("service" in given):
        raise click.UsageError("Give a REQUEST_ID, --model or --service.")
    answer = stub.Explain(explain_pb2.ExplainRequest(**given))
    if as_json:
        _print_json(answer)
        return
    _print_explanation(console, answer)


def _print_json(message: Message, *, logged: bool = False) -> None:
    document = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if logged:  # JSON within JSON reads badly.
        for trace in document["traces"]:
            trace["logged"] = json.loads(trace["logged"])
    click.echo(json.dumps(document, indent=2))


def _print_explanation(console: Console, told: explain_pb2.ExplainResponse) -> None:
    console.print(f"[bold]{told.kind} {escape(told.name)}[/bold]: {escape(told.verdict)}")
    versions = f"; policy version {told.policy_version}" if told.policy_version else ""
    console.print(f"route: {escape(told.matched)}{versions}")
    if told.worker:
        console.print(f"told by worker {told.worker}; each worker has its own gate and budget")
    policy = _table("policy", "", "")
    for line in told.policy:
        policy.add_row(line.topic, escape(line.says), "default" if line.by_default else "")
    console.print(policy)
    for number, candidate in enumerate(told.candidates, 1):
        panic = "; none is fit, so all are used" if candidate.panic else ""
        console.print(f"\n{number}. {escape(candidate.name)} ({escape(candidate.role)}){panic}")
        if candidate.endpoints:
            console.print(_endpoints(candidate))
        else:
            console.print("   no endpoint")
        if candidate.unlisted:
            console.print(f"   and {candidate.unlisted} more that can be picked")
    console.print()
    for gate in told.gates:
        console.print(f"gate of {escape(gate.name)} for {gate.calls}: {_gate(gate)}")
    if told.HasField("retry_budget"):
        budget = told.retry_budget
        console.print(
            f"retries: {budget.left} more may be made now ({budget.retrying} of {budget.allowed} "
            f"are, {budget.inflight} calls in flight)"
        )
    if told.limits:
        console.print(_limits(told.limits))
    _print_refusals(console, told.refusals)


def _print_refusals(console: Console, refusals: Iterable[explain_pb2.CallRefusal]) -> None:
    for refusal in refusals:
        would = "would only be counted as" if refusal.shadow else "is told"
        if refusal.goes_on_to:
            would = f"goes on to {escape(refusal.goes_on_to)} instead of"
        console.print(
            f"[red]{escape(refusal.when)}[/red] {would} {refusal.code}/{refusal.reason}: "
            f"{escape(refusal.message)}"
        )


def _endpoints(candidate: explain_pb2.Candidate) -> Table:
    many = any(one.worst_state for one in candidate.endpoints)
    zones = any(one.zone for one in candidate.endpoints)
    expected = any(one.expected_s for one in candidate.endpoints)
    table = _table("endpoint", "state", "picked", "in flight", "weight")
    for name, shown in (("zone", zones), ("expected", expected), ("all workers", many)):
        if shown:
            table.add_column(name, overflow="fold")
    table.add_column("why", overflow="fold")
    for one in candidate.endpoints:
        state = _state(one.state)
        row = [
            f"{escape(one.backend)}@{escape(one.address)}",
            f"[{_COLOURS.get(state, 'red')}]{state}[/]",
            "yes" if one.pickable else "no",
            str(one.inflight),
            str(one.weight),
        ]
        row += [escape(one.zone)] if zones else []
        row += [_seconds(one.expected_s) if one.expected_s else ""] if expected else []
        row += [f"{_state(one.worst_state)}, {one.inflight_of_all} in flight"] if many else []
        until = f" ({_seconds(one.changes_in_s)} left)" if one.changes_in_s else ""
        table.add_row(*row, escape(one.why) + until)
    return table


def _gate(gate: explain_pb2.Gate) -> str:
    if not gate.limit:
        return f"{gate.inflight} in flight, no limit"
    says = f"{gate.inflight} of {gate.limit} in flight"
    says += " (adaptive)" if gate.adaptive else ""
    says += f", {gate.waiting} of {gate.queue} waiting"
    if gate.answer_s:
        says += f", answers take {_seconds(gate.answer_s)} lately"
    if gate.wait_s:
        says += f"; this call would wait about {_seconds(gate.wait_s)}"
    return says + ("; shadow: nobody waits, it is only counted" if gate.shadow else "")


def _limits(limits: Iterable[explain_pb2.Limit]) -> Table:
    table = _table("limit", "allows", "of", "left", "full in", "")
    for one in limits:
        away = one.by in ("share", "open", "closed")
        notes = [f"Redis is away: {one.by}" if away else f"known to {one.by}"]
        if one.shadow:
            notes.append("shadow: it only counts")
        if one.waiting:
            notes.append(f"{one.waiting} wait, {one.ahead} of them before it")
        if one.wait_s:
            short = "too little" if one.wait_s < 0 else f"enough in {_seconds(one.wait_s)}"
            notes.append(f"[red]{short}[/red]")
        table.add_row(
            escape(one.rule),
            escape(one.says),
            escape(one.bucket),
            f"{_amount(one.remaining)} of {_amount(one.holds)}",
            _seconds(one.reset_s),
            ", ".join(notes),
        )
    return table


def _print_trace(console: Console, trace: explain_pb2.Trace) -> None:
    logged = json.loads(trace.logged)
    ended = logged["code"] + (f"/{logged['reason']}" if logged["reason"] else "")
    console.print(
        f"[bold]{escape(logged['request_id'])}[/bold] ended {logged['timestamp']}: "
        f"[{'green' if ended == 'OK' else 'red'}]{ended}[/] after {_seconds(_total_s(logged))}"
    )
    by = logged["endpoint"] or "the router itself"
    facts = {
        "tenant": logged["tenant"],
        "asked for": logged["model"],
        "method": logged["method"],
        "answered by" if logged["code"] == "OK" else "ended by": by,
        "attempts": logged["attempts"],
        "waited at the gate": _seconds(trace.queued_s) if trace.queued_s >= SHOWN_FROM_S else "",
        "in the router": _seconds(trace.router_s) if trace.router_s >= 0 else "",
        "in backends": _backends(trace, logged),
        "worker": trace.worker,
        "trace id": logged["trace_id"],
        # Whatever else the access log has come to say of a call.
        **{name: value for name, value in logged.items() if name not in _SHOWN},
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        if value not in ("", None):
            table.add_row(f"  {escape(name)}", escape(str(value)))
    console.print(table)
    if trace.steps:
        console.print(_steps(trace.steps))
    console.print()


_SHOWN = frozenset(
    {
        *("event", "level", "timestamp", "request_id", "trace_id", "tenant", "model", "method"),
        *("endpoint", "attempts", "code", "reason", "duration_ms"),
    }
)


def _total_s(logged: dict[str, Any]) -> float:
    return float(logged["duration_ms"]) / 1000


def _backends(trace: explain_pb2.Trace, logged: dict[str, Any]) -> str:
    if trace.router_s < 0 or not logged["endpoint"]:
        return ""
    return _seconds(max(0.0, _total_s(logged) - trace.router_s - trace.queued_s))


def _steps(steps: Iterable[explain_pb2.TraceStep]) -> Table:
    table = _table("  at", "endpoint", "outcome", "took", "why")
    for step in steps:
        took = _seconds(step.took_s) if step.endpoint else ""
        why = step.because or "the first attempt"
        row = (f"  {_seconds(step.at_s)}", step.endpoint, step.outcome, took, why)
        table.add_row(*map(escape, row))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _state(number: registry_pb2.EndpointState.ValueType) -> str:
    return registry_pb2.EndpointState.Name(number).removeprefix("ENDPOINT_STATE_")


def _amount(value: float) -> str:
    return f"{round(value, 3):.15g}"


def _seconds(value_s: float) -> str:
    if value_s < 1:
        return f"{value_s * 1000:.3g} ms"
    for unit, length_s in (("s", 1), ("min", 60), ("h", 3600)):
        if value_s < 100 * length_s:
            return f"{value_s / length_s:.3g} {unit}"
    return f"{value_s / 86_400:.3g} d"
