"""`aiflow credits ...`: what is in accounts, and giving and moving it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from decimal import Decimal
from typing import Any

import click

from aiflow_sdk.client import Client
from aiflow_sdk.command.administration import (
    as_json,
    limit_option,
    say_table,
    tenant_option,
    time_of,
)
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.usage import Grant, UsageAdmin

note = click.option("--note", default="", help="Why; it is kept in the ledger.")
reference = click.option(
    "--reference",
    default="",
    help="Of what it is for, such as an order: under one it is done once, however often it is "
    "asked for. Default: a new one.",
)


@click.group()
def credits() -> None:  # noqa: A001 - as the command is called
    """See credits, give them to a tenant, and move them between its accounts.

    Calls to a model or service whose route has a `price` are paid in credits: by the member's own
    account, the department's or the tenant's pool, as the tenant says (`aiflow tenant set`).

    \b
    Example:
      aiflow credits top-up acme 1000 --note "order 4711" --reference order-4711
      aiflow credits allocate 100 --tenant acme --to member:ann
      aiflow credits list acme
    """  # noqa: D301 - click's mark for lines that are kept as they are


@credits.command("list")
@click.argument("tenant", default="")
@as_json
@calls_router
def list_(*, client: Client, tenant: str, as_json: bool) -> None:
    """Show what is in the accounts of TENANT, your own without one, that you may see."""
    found = UsageAdmin(client).balances(tenant)
    if as_json:
        say_plain(found)
        return
    say_table(
        ("account", "credits", "after the last grant"),
        ((one.account, shown(one.credits), shown(one.full) if one.full else "-") for one in found),
        empty=f"there are no credits in {tenant or 'your own tenant'}: name another one, or have a "
        "platform admin give some with `aiflow credits top-up`",
    )


@credits.command("top-up")
@click.argument("tenant")
@click.argument("amount")
@note
@reference
@as_json
@calls_router
def top_up(
    *, client: Client, tenant: str, amount: str, note: str, reference: str, as_json: bool
) -> None:
    """Give the pool of TENANT AMOUNT credits; a platform admin may."""
    _say_grant(
        UsageAdmin(client).top_up(tenant, amount, note=note, reference=reference),
        as_json=as_json,
    )


@credits.command()
@click.argument("amount")
@tenant_option
@click.option(
    "--to", "target", default="pool", metavar="ACCOUNT", help="As --from.", show_default=True
)
@click.option(
    "--from",
    "source",
    default="pool",
    metavar="ACCOUNT",
    show_default=True,
    help="pool, department:NAME or member:NAME.",
)
@note
@reference
@as_json
@calls_router
def allocate(*, client: Client, amount: str, as_json: bool, **said: Any) -> None:
    """Move AMOUNT credits from one account of a tenant to another, or back.

    A tenant admin may, and a department admin from the department's account to its members.
    """
    _say_grant(UsageAdmin(client).allocate(amount, **said), as_json=as_json)


@credits.command()
@click.argument("tenant", default="")
@click.option("--account", default="", help="Only those that touch it, such as member:acme/ann.")
@limit_option
@as_json
@calls_router
def transfers(*, client: Client, tenant: str, account: str, limit: int, as_json: bool) -> None:
    """Show what moved credits of TENANT, the latest first."""
    found = list(itertools.islice(UsageAdmin(client).transfers(tenant, account=account), limit))
    if as_json:
        say_plain(found)
        return
    say_table(
        ("number", "when", "what", "call or who", "accounts", "note"),
        (
            (
                str(one.number),
                time_of(one.at_s),
                one.kind,
                one.request_id or one.actor,
                ", ".join(
                    f"{name} {shown(amount, signed=True)}" for name, amount in one.entries.items()
                ),
                one.note,
            )
            for one in found
        ),
        empty="no credits were moved",
    )


@credits.command()
@click.argument("tenant", default="")
@limit_option
@as_json
@calls_router
def alerts(*, client: Client, tenant: str, limit: int, as_json: bool) -> None:
    """Show accounts that ran low (a tenth left) or out, the latest first."""
    found = list(itertools.islice(UsageAdmin(client).alerts(tenant), limit))
    if as_json:
        say_plain(found)
        return
    say_table(
        ("number", "when", "account", "level", "left", "of"),
        (
            (
                *(str(one.number), time_of(one.at_s), one.account, one.level),
                *(shown(one.credits), shown(one.full)),
            )
            for one in found
        ),
        empty="no account ran low",
    )


def _say_grant(done: Grant, *, as_json: bool) -> None:
    if as_json:
        say_plain(done)
        return
    if done.again:
        click.echo("this reference was used before: nothing was moved again")
    for one in done.balances:
        click.echo(f"{one.account} has {shown(one.credits)} credits")


def shown(amount: Decimal, *, signed: bool = False) -> str:
    """Without zeros that say nothing."""
    text = f"{amount:+f}" if signed else f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def say_plain(found: Any) -> None:
    """Prints records as one JSON document; credits as strings, which no program rounds."""
    plain = (
        [dataclasses.asdict(one) for one in found]
        if isinstance(found, list | tuple)
        else dataclasses.asdict(found)
    )
    click.echo(json.dumps(plain, indent=2, default=shown))
