"""`aiflow check`: what a file means, and what it would change of what runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from aiflow_router.policy.view import Line
    from aiflow_sdk.policy import Policy

# Of a router that is only looked for.
ANSWER_WITHIN_S = 5.0


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="aiflow.yaml")
@click.option(
    "--router",
    envvar="AIFLOW_ROUTER",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Show what differs from the policy of the router there; AIFLOW_API_KEY says who asks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def check(context: click.Context, file: Path, router: str | None, as_json: bool) -> None:
    """Check FILE (default: aiflow.yaml) and print what it means, secrets left out.

    Prints YAML, and as comments below it the policy: a line a route and a line a limit, and what
    it would change of the one that runs. Exits 1 and prints every problem with file, line and
    column when something is wrong.
    """
    from aiflow_router.config import file as config_file  # noqa: PLC0415 - `--help` stays fast
    from aiflow_router.policy.keeping import of_the_file  # noqa: PLC0415 - as above
    from aiflow_router.policy.view import difference  # noqa: PLC0415 - as above

    try:
        config = config_file.load(file)
    except config_file.ConfigError as error:
        if as_json:
            click.echo(json.dumps({"problems": error.problems}, indent=2))
        for problem in () if as_json else error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
    found = of_the_file(config, origin=str(file), since_s=time.time())
    document = json.loads(found.text)
    runs = None
    if router is not None:
        asked = context.get_parameter_source("router") is ParameterSource.COMMANDLINE
        runs = _running(router, must=asked)
    lines = () if runs is None else tuple(difference(runs.document(), document))
    if as_json:
        told: dict[str, Any] = {
            "config": config_file.plain(config),
            "policy": {"version": found.version, "document": document},
        }
        if runs is not None:
            told["runs"] = {"version": runs.version, "source": runs.source, "origin": runs.origin}
            told["difference"] = [f"{'  ' * line.depth}{line.sign} {line.text}" for line in lines]
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(config_file.printed(config))
    _say_policy(found.version, document)
    if runs is not None:
        _say_difference(router or "", runs, lines)


def _running(router: str, *, must: bool) -> Policy | None:
    """What runs there. Where it `must` answer, AiflowError is raised; else None says it did not."""
    from aiflow_sdk.client import Client  # noqa: PLC0415 - `--help` stays fast
    from aiflow_sdk.errors import AiflowError  # noqa: PLC0415 - as above
    from aiflow_sdk.policy import PolicyAdmin  # noqa: PLC0415 - as above

    try:
        with Client(router, timeout_s=ANSWER_WITHIN_S) as client:
            return PolicyAdmin(client).get()
    except AiflowError as error:
        if must:
            raise
        click.echo(f"not compared with what runs at {router}: {error.message}", err=True)
        return None


def _say_policy(version: str, document: Mapping[str, Any]) -> None:
    from aiflow_router.policy import view  # noqa: PLC0415 - `--help` stays fast

    click.echo(f"# policy {version}")
    _say_table(view.COLUMNS, view.rows(document))
    _say_table(view.LIMIT_COLUMNS, view.limit_rows(document))


def _say_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = [columns, *rows] if rows else []
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("# " + "  ".join(cells).rstrip())


def _say_difference(router: str, runs: Policy, lines: Iterable[Line]) -> None:
    from aiflow_router.policy_command import say_difference  # noqa: PLC0415 - `--help` stays fast

    click.echo(f"# against {runs.version} from {runs.source} {runs.origin}, which runs at {router}")
    if not say_difference(lines, prefix="# "):
        click.echo("# no route and no limit differs")
