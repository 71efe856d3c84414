"""`aiflow up`: the whole mesh on this machine until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from click.core import ParameterSource

from aiflow_sdk.client import Client
from aiflow_sdk.command.infer import model_metadata
from aiflow_sdk.command.mesh import DEFAULT_CONSUL, SERVERS, Discovery, Mesh, mesh
from aiflow_sdk.command.processes import StartError, Supervisor
from aiflow_sdk.errors import AiflowError

# How often a signal is looked for.
_LOOK_S = 0.2
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


class _StoppedError(BaseException):
    """SIGINT, SIGTERM or SIGHUP, raised where the main thread is."""


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="AIFLOW_CONFIG",
    show_envvar=True,
    help="The router's configuration; by default aiflow.yaml where there is one.",
)
@click.option(
    "--grpc",
    metavar="HOST:PORT",
    envvar="AIFLOW_LISTEN_GRPC",
    show_envvar=True,
    help="The router's gRPC address; port 0: a free one.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    envvar="AIFLOW_LISTEN_HTTP",
    show_envvar=True,
    help="Its address for health and metrics.",
)
@click.option(
    "--discovery",
    type=click.Choice(["embedded", "consul"]),
    envvar="AIFLOW_DISCOVERY",
    show_envvar=True,
    help="Where servers register: at the router, or at Consul. Default: what the "
    "configuration says, else at the router.",
)
@click.option(
    "--consul",
    metavar="URL",
    envvar="AIFLOW_CONSUL",
    show_envvar=True,
    help="With --discovery consul: the agent; one is started where none answers on this machine. "
    f"Default: {DEFAULT_CONSUL}; port 0: a free one.",
)
@click.option(
    "--without", multiple=True, metavar="NAME", help="Leave out triton, imaging or geometry."
)
@click.option("--server", multiple=True, metavar="NAME", help="A further server to `serve`.")
def up(
    *,
    config: Path | None,
    grpc: str | None,
    http: str | None,
    discovery: Discovery | None,
    consul: str | None,
    without: tuple[str, ...],
    server: tuple[str, ...],
) -> None:
    """Start router, Triton and CPU servers on this machine and serve until Ctrl-C.

    A part that crashes is started again. Ctrl-C stops all of them in order, a second one at once.
    """
    names = tuple(dict.fromkeys((*SERVERS, *server)))
    for name in without:
        if name not in ("triton", *names):
            raise click.UsageError(f"--without {name}: there are triton, {', '.join(names)}")
    if (
        discovery != "consul"
        and click.get_current_context().get_parameter_source("consul")
        is ParameterSource.COMMANDLINE
    ):
        raise click.UsageError("--consul has no effect without --discovery consul: add it")
    stop = _Signals()
    ready = False
    try:
        with mesh(
            say=_Voice(),
            config=config,
            grpc=grpc,
            http=http,
            servers=[name for name in names if name not in without],
            triton="triton" not in without,
            discovery=discovery,
            consul=consul,
            started=stop.watch,
        ) as running:
            ready = True
            click.echo(_welcome(running))
            while True:
                # Linux may give the signal to another thread, and Python handles it in this one
                # only, which nothing would wake.
                time.sleep(_LOOK_S)
    except StartError as error:
        raise click.ClickException(str(error)) from error
    except _StoppedError:
        click.echo("stopped", err=True)
        sys.exit(0 if ready else 130)


class _Signals:
    """The first signal unwinds to the end of the mesh; the next one kills every part."""

    def __init__(self) -> None:
        self._supervisor: Supervisor | None = None
        self._signals = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def watch(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            click.echo("stopping; once more to stop at once", err=True)
            raise _StoppedError
        if self._supervisor is not None:
            self._supervisor.kill()
        os._exit(128 + number)


class _Voice:
    """Writes each part's lines to stderr behind its name, in its colour."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._colours: dict[str, str] = {}

    def __call__(self, part: str, line: str) -> None:
        colour = self._colours.setdefault(part, _COLOURS[len(self._colours) % len(_COLOURS)])
        prefix = click.style(f"{time.monotonic() - self._started_s:6.1f} {part:>9} |", fg=colour)
        click.echo(f"{prefix} {_readable(line)}", err=True)


def _readable(line: str) -> str:
    """A JSON log line as a person reads it; any other line as it is."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not (isinstance(entry, dict) and "event" in entry):
        return line
    event, level = entry.pop("event"), str(entry.pop("level", "info"))
    entry.pop("timestamp", None)
    exception = entry.pop("exception", None)
    facts = " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in entry.items()
    )
    shown = f"{event} {facts}".rstrip() + (f"\n{exception}" if exception else "")
    return shown if level in ("info", "debug") else f"{level.upper()} {shown}"


def first_call(running: Mesh) -> str:
    """A command that works as it is: a model that takes one picture and nothing else."""
    first = "aiflow status"
    with Client(running.router) as client, contextlib.suppress(AiflowError):
        for model in running.models:
            inputs = model_metadata(client, model).inputs
            if [(tensor.name, tensor.datatype) for tensor in inputs] == [("image", "BYTES")]:
                first = f"aiflow infer {model} --input image=@photo.jpg"
    if running.router != "127.0.0.1:7600":
        first += f" --router {running.router}"
    return first


def _welcome(running: Mesh) -> str:
    return "\n".join(
        (
            "",
            "AIFlow is up.",
            f"  gRPC      {running.router}",
            f"  HTTP      http://{running.http}/readyz  /healthz  /metrics",
            *([f"  Consul    {running.consul}/ui"] if running.consul else []),
            f"  models    {', '.join(running.models) or 'none'}",
            f"  services  {', '.join(running.services) or 'none'}",
            "",
            "A first call to try, in another terminal:",
            f"  {first_call(running)}",
            "",
            "Ctrl-C stops everything.",
        )
    )
