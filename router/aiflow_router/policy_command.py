"""`aiflow policy ...`: what runs, what ran before, and changing it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from aiflow_router.policy.view import Line, difference
from aiflow_sdk.client import Client
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.policy import Change, Policy, PolicyAdmin

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def policy() -> None:
    """See and change the routes of a running router.

    Where the router has keys, one is needed that may `admin`.
    """


@policy.command()
@click.argument("version", default="")
@as_json
@calls_router
def show(*, client: Client, version: str, as_json: bool) -> None:
    """Print the policy in force, or an earlier VERSION; `set` takes what this prints."""
    admin = PolicyAdmin(client)
    found, refusal = admin.get(version), admin.refusal()
    if as_json:
        told = {**_plain(found), "refusal": refusal and dataclasses.asdict(refusal)}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"# {_line(found)}")
    if refusal is not None:
        click.secho(
            f"# refused at {_time(refusal.at_s)} from {refusal.source} {refusal.origin}:", fg="red"
        )
        for problem in refusal.problems:
            click.secho(f"#   {problem}", fg="red")
    click.echo(yaml.safe_dump(found.document(), sort_keys=False).rstrip())


@policy.command("list")
@as_json
@calls_router
def list_(*, client: Client, as_json: bool) -> None:
    """List the versions that the router keeps, the one in force first."""
    found = PolicyAdmin(client).list()
    if as_json:
        click.echo(json.dumps([_plain(one) for one in found], indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("version", "source", "origin", "since"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(one.version, one.source, one.origin, _time(one.since_s))
    Console().print(table)


@policy.command("set")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option(
    "--expected", default="", metavar="VERSION", help="Only replace this version, else fail."
)
@as_json
@calls_router
def set_(*, client: Client, file: Path, dry_run: bool, expected: str, as_json: bool) -> None:
    """Put FILE in force: a document with `routes:`, `limits:` and nothing else.

    Exits 1, and changes nothing, where something in it is wrong.
    """
    change = PolicyAdmin(client).set(
        file.read_text(encoding="utf-8"), name=str(file), expected=expected, dry_run=dry_run
    )
    say(change, as_json=as_json)


@policy.command()
@click.argument("version")
@click.option(
    "--expected", default="", metavar="VERSION", help="Only replace this version, else fail."
)
@as_json
@calls_router
def rollback(*, client: Client, version: str, expected: str, as_json: bool) -> None:
    """Put an earlier VERSION in force again; `list` shows them."""
    say(PolicyAdmin(client).rollback(version, expected=expected), as_json=as_json)


@policy.command()
@as_json
@calls_router
def watch(*, client: Client, as_json: bool) -> None:
    """Print the policy in force and each change of it, until Ctrl-C."""
    before: Mapping[str, Any] | None = None
    for found in PolicyAdmin(client).watch():
        if as_json:
            click.echo(json.dumps(_plain(found)))
            continue
        click.echo(_line(found))
        if before is not None:
            say_difference(difference(before, found.document()))
        before = found.document()


def say(change: Change, *, as_json: bool) -> None:
    """Prints what came of a change."""
    if as_json:
        told = {
            "policy": _plain(change.policy),
            "replaced": _plain(change.replaced),
            "holds": change.holds,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{change.replaced.version} -> {change.policy.version}")
    if not say_difference(difference(change.replaced.document(), change.policy.document())):
        click.echo("no route and no limit differs")
    click.echo(change.holds)


def say_difference(
    lines: Iterable[Line], *, prefix: str = "", echo: Callable[[str], None] = click.echo
) -> int:
    """Prints lines in colour, behind `prefix`; how many there were."""
    count = 0
    for line in lines:
        text = f"{prefix}{'  ' * line.depth}{line.sign} {line.text}"
        echo(click.style(text, fg=_COLOURS[line.sign]))
        count += 1
    return count


def _plain(found: Policy) -> dict[str, Any]:
    told = dataclasses.asdict(found)
    text = told.pop("text")
    return {**told, "document": json.loads(text)} if text else told


def _line(found: Policy) -> str:
    return f"policy {found.version} since {_time(found.since_s)} from {found.source} {found.origin}"


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
