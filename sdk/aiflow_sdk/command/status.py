"""`aiflow status`: what the router serves, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aiflow_sdk._catalog import Endpoint
from aiflow_sdk.client import Client
from aiflow_sdk.command.options import calls_router

_COLOURS = {"READY": "green", "DRAINING": "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@calls_router
def status(*, client: Client, as_json: bool) -> None:
    """Show the endpoints the router knows: what they serve, and whether they can.

    Exits with 1 where the router cannot be reached.
    """
    endpoints = client.endpoints()
    health = client.health()
    if as_json:
        listed = [dataclasses.asdict(endpoint) for endpoint in endpoints]
        click.echo(
            json.dumps({"router": client.router, "health": health, "endpoints": listed}, indent=2)
        )
        return
    console = Console()
    console.print(f"router [bold]{client.router}[/bold]  {health}")
    if endpoints:
        console.print(_table(endpoints))
    else:
        console.print("nothing is registered yet: start a server, such as `aiflow serve imaging`")


def _table(endpoints: tuple[Endpoint, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("backend", "endpoint", "protocol", "serves", "version", "device", "state"):
        table.add_column(name, overflow="fold")
    table.add_column("in flight", justify="right")
    table.add_column("lease", justify="right")
    for one in endpoints:
        table.add_row(
            one.backend,
            one.address,
            one.protocol,
            "\n".join((*one.models, *one.services)),
            escape(one.version),
            escape(one.device),
            f"[{_COLOURS.get(one.state, 'red')}]{one.state}[/]",
            str(one.inflight),
            f"{one.expires_in_s:.1f} s" if one.expires_in_s else "static",
        )
    return table
