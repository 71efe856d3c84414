"""`aiflow canary`: gives a model's new version more of its calls, or takes them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc
from aiflow_sdk import canary as canaries
from aiflow_sdk.client import Client
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.policy import PolicyAdmin

Edit = Callable[[dict[str, Any]], dict[str, Any]]


@click.command()
@click.argument("model")
@click.option("--new", metavar="NAME", help="Begin: 10 % of the calls go to model NAME.")
@click.option("--step", is_flag=True, help="Go on, 10 % -> 50 % -> 100 %.")
@click.option("--to", type=click.IntRange(0, 100), metavar="PERCENT", help="Go there.")
@click.option("--back", is_flag=True, help="All calls to the old version, as --to 0.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@calls_router
def canary(
    *,
    client: Client,
    model: str,
    new: str | None,
    step: bool,
    to: int | None,
    back: bool,
    dry_run: bool,
) -> None:
    """Show how MODEL's calls are shared with its new version, or change that.

    The change is one of the policy: `aiflow policy rollback` takes it back, too. Exits 1 where it
    is refused, where nothing serves the new version, or where somebody else changed the policy in
    between.
    """
    edits: list[Edit] = []
    if new is not None:
        edits.append(lambda document: canaries.begun(document, model, new))
    if step:
        edits.append(lambda document: canaries.stepped(document, model))
    if to is not None:
        edits.append(lambda document: canaries.moved(document, model, to))
    if back:
        edits.append(lambda document: canaries.moved(document, model, 0))
    if len(edits) > 1:
        raise click.UsageError("give one of --new, --step, --to and --back")
    admin = PolicyAdmin(client)
    if not edits:
        click.echo(_line(canaries.canary(admin.get().document(), model)))
        return
    change = admin.edit(edits[0], dry_run=True)
    aim = canaries.canary(change.policy.document(), model)
    if aim.percent:
        _check_served(client, aim.new)
    if not dry_run:
        change = admin.edit(edits[0])
    click.echo(_line(canaries.canary(change.policy.document(), model)))
    click.echo(f"{change.replaced.version} -> {change.policy.version}; {change.holds}")


def _check_served(client: Client, model: str) -> None:
    """Raises ClickException; NotFoundError with the nearest names where nobody knows the model."""
    stub = client.stub(explain_pb2_grpc.ExplainServiceStub, idempotent=True)
    told = stub.Explain(explain_pb2.ExplainRequest(model=model))
    if not any(one.pickable for candidate in told.candidates for one in candidate.endpoints):
        raise click.ClickException(
            f'no endpoint serves "{model}" now, so its share of the calls would fail: start a '
            "server for it first; `aiflow status` shows those that run"
        )


def _line(found: canaries.Canary) -> str:
    kept = 100 - found.percent
    return f"{found.model}: {found.percent:g} % to {found.new}, {kept:g} % to {found.old}"
