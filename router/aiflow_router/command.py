"""`aiflow router`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

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
@click.option(
    "--discovery",
    type=click.Choice(["embedded", "consul"]),
    envvar="AIFLOW_DISCOVERY",
    show_envvar=True,
    help="Where endpoints come from beside those that are listed: servers that register here, or "
    "Consul. Default: what discovery names, else embedded.",
)
@click.option(
    "--consul",
    metavar="URL",
    envvar="AIFLOW_CONSUL",
    show_envvar=True,
    help="The Consul agent. Default: discovery.consul.address, else http://127.0.0.1:8500.",
)
@click.option(
    "--consul-token-file",
    type=click.Path(dir_okay=False),
    envvar="AIFLOW_CONSUL_TOKEN_FILE",
    show_envvar=True,
    help="File with an ACL token. Default: discovery.consul.token_file.",
)
def router(
    *,
    path: Path | None,
    grpc_address: str | None,
    http_address: str | None,
    discovery: Literal["embedded", "consul"] | None,
    consul: str | None,
    consul_token_file: str | None,
) -> None:
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
    listen = {"grpc": grpc_address, "http": http_address}
    asked = {"address": consul, "token_file": consul_token_file}
    read = partial(_read, path, listen=listen, discovery=discovery, consul=asked)
    config = _configured(read)
    if config.discovery.consul is None:
        _check_no_consul()
    problem = asyncio.run(_run(config, read, path or Path(DEFAULT_FILE)))
    if problem:
        raise click.ClickException(problem)


def _check_no_consul() -> None:
    """Refuses what would have no effect; the environment is set for many and may be idle."""
    for name, option in (("consul", "--consul"), ("consul_token_file", "--consul-token-file")):
        source = click.get_current_context().get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option} has no effect, for endpoints do not come from Consul: add --discovery "
                "consul, or `consul: {}` under discovery in the configuration"
            )


def _read(
    path: Path | None,
    *,
    listen: Mapping[str, str | None],
    discovery: Literal["embedded", "consul"] | None,
    consul: Mapping[str, str | None],
) -> Config:
    """The file with the flags on top. Raises ConfigError."""
    from aiflow_router.config import file as config_file  # noqa: PLC0415 - `--help` stays fast
    from aiflow_router.config.config import Config  # noqa: PLC0415 - as above

    if path is None and Path(config_file.DEFAULT_FILE).is_file():
        path = Path(config_file.DEFAULT_FILE)
    config = Config() if path is None else config_file.load(path)
    config = config_file.with_listen(config, _given(listen))
    return config_file.with_discovery(config, discovery, _given(consul))


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


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
    consul = config.discovery.consul
    listening = partial(_say_listening, "" if consul is None else consul.address)
    watched = Watched(path=path, read=read)
    if config.listen.workers == 1:
        return await _one_process(config, watched, listening)
    from aiflow_router.processes.supervisor import supervise  # noqa: PLC0415 - as above

    return await supervise(config, watched=watched, listening=listening)


def _say_listening(consul: str, grpc: str, http: str) -> None:
    """Where it listens, and where servers register if that is not here."""
    said = {"event": "listening", "grpc": grpc, "http": http}
    line = json.dumps(said | ({"consul": consul} if consul else {}))
    print(line, flush=True)  # noqa: T201 - read by whoever started us


async def _one_process(
    config: Config, watched: Watched, listening: Callable[[str, str], None]
) -> str:
    import structlog  # noqa: PLC0415 - `--help` stays fast

    from aiflow_router.garbage import kept_short  # noqa: PLC0415 - as above
    from aiflow_router.main import serving  # noqa: PLC0415 - as above
    from aiflow_router.rpc.server import AddressInUseError  # noqa: PLC0415 - as above
    from aiflow_router.rpc.tls import CertificateError  # noqa: PLC0415 - as above
    from aiflow_router.storage.database import StorageError  # noqa: PLC0415 - as above
    from aiflow_sdk.consul import ConsulRefusedError  # noqa: PLC0415 - as above

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
            listening(running.grpc_address, running.http_address)
            with kept_short(running.view.follow):
                await stop.wait()
                await running.drain()
    except (AddressInUseError, CertificateError, ConsulRefusedError, StorageError) as error:
        # Told here, while the loop runs that the half-started server needs for its end.
        return str(error)
    return ""
