"""What the commands about tenants, members and keys have in common: options, tables, times."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aiflow_sdk.tenancy_records import NewKey

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_S = 100 * 365 * 86_400.0
# Ids are no longer, and are there to be copied.
_ID = 24
# Of a line that nobody has to see at once.
_PIPED = 10_000

limit_option = click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000_000),
    default=50,
    show_default=True,
    help="So many at most.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
tenant_option = click.option(
    "--tenant", default="", metavar="TENANT", help="Of this tenant. Default: your key's own."
)
role_option = click.option(
    "--role",
    type=click.Choice(["member", "department_admin", "tenant_admin", "platform_admin"]),
    help="What it may administer; not above your own role. Default: member, that is nothing.",
)


class Span(click.ParamType[float]):
    """A length of time with its unit; in seconds."""

    name = "span"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = _SPAN.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' has no unit: write 45s, 90m, 12h or 30d", param, ctx)
        found_s = float(match[1]) * _UNIT_S[match[2]]
        if found_s > _LONGEST_S:
            self.fail(f"'{value}' is longer than 100 years", param, ctx)
        return found_s


def say_json(found: Any) -> None:
    """Prints a record, or a list of them, as one document."""
    plain = found if isinstance(found, dict) else _plain(found)
    click.echo(json.dumps(plain, indent=2))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Prints a row a record, or `empty` where there is none."""
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    whole = max(len(row[0]) for row in rows) <= _ID
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=whole and number == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table)


def say_fields(found: Any) -> None:
    """Prints a record, a field a line; times as a person reads them."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for field, value in dataclasses.asdict(found).items():
        if field.endswith("_s"):
            table.add_row(field.removesuffix("_s"), time_of(value))
        elif isinstance(value, tuple):
            table.add_row(field, escape(", ".join(value) or "all"))
        else:
            table.add_row(field, escape(str(value)))
    _console().print(table)


def say_key(made: NewKey, *, as_json: bool) -> None:
    """Prints a new key: the whole of it alone on stdout, so that it can be caught by a program."""
    if as_json:
        say_json(made)
        return
    found = made.key
    ends = f", good until {time_of(found.expires_s)}" if found.expires_s else ""
    click.echo(
        f"key {found.key} ({found.name}) of {found.tenant}/{found.member}, may "
        f"{', '.join(found.may)}{ends}",
        err=True,
    )
    if made.replaced is not None:
        click.echo(
            f"it is in place of {made.replaced.key}, which works until "
            f"{time_of(made.replaced.expires_s)}",
            err=True,
        )
    click.echo("this is shown once; whoever has it is you: keep it in AIFLOW_API_KEY", err=True)
    click.echo(made.secret)


def time_of(at_s: float | None) -> str:
    """Local time; "-" for never."""
    return "-" if at_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _console() -> Console:
    """As wide as what is printed where that is no terminal: a record is a line for grep."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_PIPED if piped else None)


def _plain(found: Any) -> Any:
    if isinstance(found, list | tuple):
        return [_plain(one) for one in found]
    return dataclasses.asdict(found)
