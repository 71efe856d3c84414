"""`aiflow usage`: what was used, as a table or as CSV."""

from __future__ import annotations

import sys
from typing import Any

import click

from aiflow_sdk.client import Client
from aiflow_sdk.command.administration import as_json, say_table, tenant_option
from aiflow_sdk.command.credits import say_plain, shown
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.usage import Usage, UsageAdmin, Which

KEPT = ("day", "tenant", "department", "member", "key", "model")


@click.command()
@tenant_option
@click.option("--from", "from_day", default="", metavar="DAY", help="Default: 30 days ago.")
@click.option("--to", "to_day", default="", metavar="DAY", help="Default: today, in UTC.")
@click.option("--department", default="", help="Only of this department.")
@click.option("--member", default="", help="Only of this member.")
@click.option("--model", default="", help="Only of this model or service.")
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(KEPT),
    help="What is kept apart; may be given several times. Default: model.",
)
@click.option("--csv", "as_csv", is_flag=True, help="A line for each day, caller and model.")
@as_json
@calls_router
def usage(
    *, client: Client, by: tuple[str, ...], as_csv: bool, as_json: bool, **which: Any
) -> None:
    """Show what was used: calls, tokens, pixels, GPU time, bytes and credits.

    A platform admin sees every tenant, or one with --tenant; a tenant admin the own tenant, a
    department admin the own department, and everybody what is their own.

    \b
    Example:
      aiflow usage --by day --by member --from 2026-11-01
      aiflow usage --csv --from 2026-11-01 --to 2026-11-30 > november.csv
    """  # noqa: D301 - click's mark for lines that are kept as they are
    if as_csv and (as_json or by):
        raise click.UsageError("--csv has a line for each day, caller and model: give it alone.")
    admin = UsageAdmin(client)
    if as_csv:
        for part in admin.export(Which(**which)):
            # Its lines end as CSV's do, whatever this system's are.
            sys.stdout.buffer.write(part.encode())
        return
    by = by or ("model",)
    found = list(admin.usage(Which(**which), by=by))
    if as_json:
        say_plain(found)
        return
    kept = [name for name in KEPT if name in by]
    say_table(
        (*kept, "calls", "failed", "tokens", "pixels", "gpu ms", "bytes", "credits"),
        ((*(getattr(one, name) or "-" for name in kept), *_sums(one)) for one in found),
        empty="nothing was used in these days",
    )


def _sums(one: Usage) -> tuple[str, ...]:
    return (
        *(str(one.calls), str(one.failed), f"{one.tokens:.15g}", f"{one.pixels:.15g}"),
        *(f"{one.gpu_ms:.15g}", str(one.bytes), shown(one.credits)),
    )
