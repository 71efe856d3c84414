"""`aiflow router`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aiflow_router.config.config import Config
    from aiflow_router.policy.keeping import Watched

# As config.file has it, which is not imported before it is needed.
DEFAULT_FILE = "aiflow.yaml"
_FORCED_EXIT = 130


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="AIFLOW_CONFIG",
    show_envvar=True,
    help="Configuration. Default: ./aiflow.yaml where there is one.",
)
@click.option(
    "--grpc",
    "grpc_address",
    metavar="HOST:PORT",
    envvar="AIFLOW_LISTEN_GRPC",
    show_envvar=True,
    help="Address for calls. Default: listen.grpc, else 127.0.0.1:7600. Port 0 takes any free one.",
)
@click.option(
    "--http",
    "http_address",
    metavar="HOST:PORT",
    envvar="AIFLOW_LISTEN_HTTP",
    show_envvar=True,
    help="Address for /healthz, /readyz and /metrics. Default: listen.http, else 127.0.0.1:7601.",
)
def router(path: Path | None, grpc_address: str | None, http_address: str | None) -> None:
    """Run the router until SIGTERM or Ctrl-C.

    It takes calls for every registered model and service at one address. When it listens it prints
    one JSON line with the real addresses; logs go to stderr. The first signal lets calls in flight
    finish (listen.drain_grace, listen.drain_timeout), a second one exits at once.

    \b
    Example:
      aiflow router --grpc 0.0.0.0:7600 --config aiflow.yaml
    """  # noqa: D301 - click's mark for lines that are kept as they are
    from aiflow_sdk import logs  # noqa: PLC0415 - `--help` stays fast

    logs.configure()
    read = partial(_read, path, grpc_address=grpc_address, http_address=http_address)
    problem = asyncio.run(_run(_configured(read), read, path or Path(DEFAULT_FILE)))
    if problem:
        raise click.ClickException(problem)


def _read(path: Path | None, *, grpc_address: str | None, http_address: str | None) -> Config:
    """The file with the flags on top. Raises ConfigError."""
    from aiflow_router.config import file as config_file  # noqa: PLC0415 - `--help` stays fast
    from aiflow_router.config.config import Config  # noqa: PLC0415 - as above

    if path is None and Path(config_file.DEFAULT_FILE).is_file():
        path = Path(config_file.DEFAULT_FILE)
    given = {
        name: value
        for name, value in (("grpc", grpc_address), ("http", http_address))
        if value is not None
    }
    config = Config() if path is None else config_file.load(path)
    return config_file.with_listen(config, given)


def _configured(read: Callable[[], Config]) -> Config:
    from aiflow_router.config import file as config_file  # noqa: PLC0415 - `--help` stays fast

    try:
        return read()
    except config_file.ConfigError as error:
        raise click.ClickException(str(error)) from None


async def _run(config: Config, read: Callable[[], Config], path: Path) -> str:
    """Serves until a signal; what was wrong, or empty."""
    import structlog  # noqa: PLC0415 - `--help` stays fast

    from aiflow_router.config import file as config_file  # noqa: PLC0415 - as above
    from aiflow_router.policy.keeping import Watched  # noqa: PLC0415 - as above

    structlog.get_logger(__name__).info("configured", config=config_file.plain(config))
    watched = Watched(path=path, read=read)
    if config.listen.workers == 1:
        return await _one_process(config, watched)
    from aiflow_router.processes.supervisor import supervise  # noqa: PLC0415 - as above

    return await supervise(config, watched=watched, listening=_say_listening)


def _say_listening(grpc: str, http: str) -> None:
    line = json.dumps({"event": "listening", "grpc": grpc, "http": http})
    print(line, flush=True)  # noqa: T201 - read by whoever started us


async def _one_process(config: Config, watched: Watched) -> str:
    import structlog  # noqa: PLC0415 - `--help` stays fast

    from aiflow_router.garbage import kept_short  # noqa: PLC0415 - as above
    from aiflow_router.main import serving  # noqa: PLC0415 - as above
    from aiflow_router.rpc.server import AddressInUseError  # noqa: PLC0415 - as above

    log = structlog.get_logger(__name__)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(_FORCED_EXIT)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(
        signal.SIGHUP,
        log.error,
        "no reload with one worker: routes are taken by themselves when the file changes; for the "
        "rest restart the router, or set listen.workers to 2 or more",
    )
    try:
        async with serving(config, watched=watched) as running:
            _say_listening(running.grpc_address, running.http_address)
            with kept_short():
                await stop.wait()
                await running.drain()
    except AddressInUseError as error:
        # Told here, while the loop runs that the half-started server needs for its end.
        return str(error)
    return ""
