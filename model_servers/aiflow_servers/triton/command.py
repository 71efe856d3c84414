"""`aiflow triton`: installs Triton where it is missing, runs it and registers its models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiflow_sdk import logs
from aiflow_sdk.errors import AiflowError
from aiflow_servers.runtime.discovery import registers

if TYPE_CHECKING:  # what the `servers` extra brings is imported when Triton is really run
    from aiflow_servers.runtime.registrar import Registrar
    from aiflow_servers.triton.process import Launch


@click.command(
    epilog="""
    The first time it downloads Triton (53 MB), the models' packages and weights (about 150 MB)
    into the cache folder: AIFLOW_CACHE, or .cache of a checkout, or ~/.cache/aiflow.

    When its models take calls it prints one line of JSON to stdout, such as
    {"event": "listening", "grpc": "127.0.0.1:40123", "models": ["detector"], ...}; its log goes
    to stderr, Triton's own to a file named there. SIGTERM and Ctrl-C let the requests in flight
    finish; a second one ends it at once.

    Examples:

    \b
      aiflow triton
      aiflow triton --model detector --router mesh:7600
      aiflow triton --discovery consul --zone a
      aiflow triton --repository ./models --standalone --grpc-port 8001
    """
)
@click.option("--repository", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of models to serve.  [default: AIFlow's own]")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="Serve only this model; may be repeated.")  # fmt: skip
@registers
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Where Triton listens, and under which name the router reaches it.")  # fmt: skip
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=0, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--gpu/--cpu", default=None,
              help="What the models run on.  [default: a GPU where there is one]")  # fmt: skip
@click.option("--no-batching", is_flag=True,
              help="Hand every request to its model alone, to measure batching.")  # fmt: skip
@click.option("--install-only", is_flag=True, help="Fetch everything, run nothing.")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
              default="INFO", show_default=True)  # fmt: skip
@click.option("--log-format", type=click.Choice(["json", "console"]),
              help="[default: console on a terminal, json elsewhere]")  # fmt: skip
def triton(
    *,
    repository: Path | None,
    models: Sequence[str],
    registrar: Registrar | None,
    zone: str,
    weight: int,
    host: str,
    grpc_port: int,
    metrics_port: int,
    gpu: bool | None,
    no_batching: bool,
    install_only: bool,
    log_level: str,
    log_format: logs.LogFormat | None,
) -> None:
    """Run Triton on this machine and register its models at the router, or at Consul.

    A crashed Triton is started again; a model that is not ready is not registered.
    """
    logs.configure(format=log_format, level=log_level)
    try:
        with tempfile.TemporaryDirectory(prefix="aiflow-triton-") as scratch:
            launch = _prepare(
                repository, models, Path(scratch), gpu=gpu, no_batching=no_batching,
                ports=(host, grpc_port, metrics_port),
            )  # fmt: skip
            if not install_only:
                asyncio.run(_keep(launch, registrar=registrar, zone=zone, weight=weight))
    except AiflowError as error:
        raise click.ClickException(error.message) from error


def _prepare(
    repository: Path | None,
    models: Sequence[str],
    scratch: Path,
    *,
    gpu: bool | None,
    no_batching: bool,
    ports: tuple[str, int, int],
) -> Launch:
    from aiflow_servers import places  # noqa: PLC0415 - see the top
    from aiflow_servers.triton.launch import prepare  # noqa: PLC0415 - see the top

    host, grpc_port, metrics_port = ports
    return prepare(
        repository=repository or places.model_repository(),
        models=models,
        scratch=scratch,
        gpu=gpu,
        batching=not no_batching,
        host=host,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        report=lambda line: click.echo(line, err=True),
    )


async def _keep(launch: Launch, *, registrar: Registrar | None, zone: str, weight: int) -> None:
    from aiflow_servers.triton.keeper import Keeper  # noqa: PLC0415 - see the top
    from aiflow_servers.triton.process import StartError  # noqa: PLC0415 - see the top

    def ready(keeper: Keeper) -> None:
        line: dict[str, object] = {
            "event": "listening",
            "grpc": keeper.address,
            "models": list(keeper.models),
        }
        line |= {"metrics": keeper.metrics_address, "pid": keeper.pid, "log": str(launch.log)}
        print(json.dumps(line), flush=True)  # noqa: T201 - this line is the command's answer

    keeper = Keeper(launch, registrar=registrar, zone=zone, weight=weight, on_ready=ready)
    keeping = asyncio.create_task(keeper.run())
    asked = 0

    def signalled(number: int) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            keeper.kill()
            os._exit(128 + number)
        keeping.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled, number)
    try:
        await keeping
    except StartError as error:
        raise click.ClickException(str(error)) from error
    except asyncio.CancelledError:
        if not asked:
            raise
