"""`aiflow serve NAME`: runs one CPU server until it is told to stop."""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import signal
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click
import structlog

from aiflow_sdk import logs
from aiflow_servers.runtime.discovery import registers

if TYPE_CHECKING:  # what the `servers` extra brings is imported when a server is really run
    from aiflow_servers.runtime.registrar import Registrar
    from aiflow_servers.runtime.server import Server

_GROUP = "aiflow.servers"

_log = structlog.get_logger(__name__)


@click.command(
    epilog=f"""
    Servers installed here: {", ".join(sorted(metadata.entry_points(group=_GROUP).names))}.

    When it takes calls it prints one line of JSON to stdout, such as
    {{"event": "listening", "name": "imaging", "grpc": "127.0.0.1:40123", "http": ...}}; its log
    goes to stderr. SIGTERM and Ctrl-C let the calls in flight finish; a second one ends it at once.

    Examples:

    \b
      aiflow serve imaging
      aiflow serve imaging --listen 0.0.0.0:7700 --http 0.0.0.0:7701 --router mesh:7600
      aiflow serve imaging --discovery consul --zone a
      aiflow serve imaging --standalone --listen 127.0.0.1:7700
    """
)
@click.argument("name")
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT",
              help="Where gRPC listens; port 0 takes a free one.")  # fmt: skip
@click.option("--http", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT",
              help="Where /healthz, /readyz and /metrics listen.")  # fmt: skip
@click.option("--advertise", metavar="HOST:PORT",
              help="Address under which the router reaches this server. Needed behind NAT or a "
                   "port mapping; otherwise found by itself.")  # fmt: skip
@registers
@click.option("--server-version", "version", metavar="TEXT",
              help="Version told to the router.  [default: that of its distribution]")  # fmt: skip
@click.option("--device", default="cpu", show_default=True,
              help="What it computes on, told to the router, such as gpu:0.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N",
              help="Worker processes.  [default: one per core]")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(0), default=64, show_default=True, metavar="N",
              help="Jobs that may wait for a worker before the next is refused.")  # fmt: skip
@click.option("--recycle-after", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Replace a worker process after N jobs; 0 for never.")  # fmt: skip
@click.option("--max-call", type=click.FloatRange(0, min_open=True), default=60.0,
              show_default=True, metavar="SECONDS",
              help="Cap on any call, and the deadline of one without.")  # fmt: skip
@click.option("--grace", type=click.FloatRange(0), default=0.5, show_default=True,
              metavar="SECONDS",
              help="How long calls may still arrive after saying that it drains.")  # fmt: skip
@click.option("--drain", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="SECONDS",
              help="How long calls in flight may take to finish.")  # fmt: skip
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
              default="INFO", show_default=True)  # fmt: skip
@click.option("--log-format", type=click.Choice(["json", "console"]),
              help="[default: console on a terminal, json elsewhere]")  # fmt: skip
def serve(
    name: str,
    *,
    listen: str,
    registrar: Registrar | None,
    version: str | None,
    recycle_after: int,
    max_call: float,
    grace: float,
    drain: float,
    log_level: str,
    log_format: logs.LogFormat | None,
    **options: Any,
) -> None:
    """Run the CPU server NAME and register it at the router, or at Consul.

    Its work is done in worker processes, one per core. While the router or Consul is away the
    server keeps serving and goes on trying to register.
    """
    logs.configure(format=log_format, level=log_level)
    server, distributed = _server(name)
    options |= {
        "address": listen,
        "registrar": registrar,
        "version": distributed if version is None else version,
        "recycle_after_jobs": recycle_after,
        "max_call_s": max_call,
        "grace_s": grace,
        "drain_s": drain,
    }
    shown = options | {"registrar": registrar.address if registrar else None}
    _log.info("starting", server=server.name, **shown)
    asyncio.run(_serve(server, options))


def _server(name: str) -> tuple[Server, str]:
    """The server that an installed distribution has under `name`, and that one's version."""
    found = metadata.entry_points(group=_GROUP)
    if name not in found.names:
        near = difflib.get_close_matches(name, found.names, n=3, cutoff=0.4)
        meant = f"did you mean {' or '.join(near)}?" if near else "it is not installed."
        raise click.UsageError(
            f"no server is called {name!r}; {meant} Installed: {', '.join(sorted(found.names))}"
        )
    entry = found[name]
    try:
        server: Server = entry.load()
    except ModuleNotFoundError as error:
        raise click.ClickException(_what_is_missing(entry, error)) from error
    return server, entry.dist.version if entry.dist else ""


def _what_is_missing(entry: metadata.EntryPoint, error: ModuleNotFoundError) -> str:
    distribution = entry.dist.name if entry.dist else "its distribution"
    missing = error.name or str(error)
    if entry.value.startswith(missing.partition(".")[0]):
        return f"server {entry.name!r} is not in this installation: there is no module {missing}"
    wanted = "aiflow[servers]" if distribution == "aiflow" else distribution
    return (
        f"server {entry.name!r} needs {missing!r}, which is not installed: pip install '{wanted}'"
    )


async def _serve(server: Server, options: dict[str, Any]) -> None:
    from aiflow_servers.runtime.address import AddressError  # noqa: PLC0415 - see the top
    from aiflow_servers.runtime.server import StartError, serving  # noqa: PLC0415 - see the top

    stop = _Stop()
    try:
        async with serving(server, **options) as running:
            ready = {"event": "listening", "name": server.name}
            ready |= {"grpc": running.address, "http": running.http_address}
            click.echo(json.dumps(ready))
            await stop.asked()
            _log.info("draining", server=server.name)
    except (StartError, AddressError) as error:
        raise click.ClickException(str(error)) from error
    except asyncio.CancelledError:
        if not stop.early:
            raise
    _log.info("stopped", server=server.name)


class _Stop:
    """SIGINT and SIGTERM: the first asks to stop, the second ends the process at once."""

    def __init__(self) -> None:
        self.early = False  # asked before the server was up
        self._asked = asyncio.Event()
        self._starting = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    async def asked(self) -> None:
        self._starting = None
        await self._asked.wait()

    def _signalled(self, number: int) -> None:
        if self._asked.is_set():
            os._exit(128 + number)  # the worker processes end with this one
        self._asked.set()
        if self._starting is not None:
            self.early = True
            self._starting.cancel()
