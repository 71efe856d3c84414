"""Where `aiflow serve` and `aiflow triton` register: their options, and what they lead to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from aiflow_sdk.command.options import encrypts, tls_of

if TYPE_CHECKING:  # what the `servers` extra brings is imported when a server is really run
    from aiflow_servers.runtime.registrar import Registrar

Discovery = Literal["embedded", "consul"]

_DEFAULT_CONSUL = "http://127.0.0.1:8500"

# Options that say something about one place to register and nothing about the other.
_ONLY: dict[Discovery, dict[str, str]] = {
    "embedded": {
        "router": "--router",
        "api_key": "--api-key",
        "tls_ca": "--tls-ca",
        "tls_cert": "--tls-cert",
        "tls_key": "--tls-key",
    },
    "consul": {"consul": "--consul", "consul_token_file": "--consul-token-file"},
}
# Options that say something about any.
_ANYWHERE = {"discovery": "--discovery", "zone": "--zone", "weight": "--weight"}

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--router", default="127.0.0.1:7600", show_default=True, metavar="HOST:PORT",
                 envvar="AIFLOW_ROUTER", show_envvar=True, help="Where to register."),
    click.option("--api-key", envvar="AIFLOW_API_KEY", show_envvar=True, metavar="KEY",
                 help="Key for the router. Other users of this machine can read it on the command "
                      "line, so prefer the variable."),
    click.option("--discovery", type=click.Choice(["embedded", "consul"]), default="embedded",
                 envvar="AIFLOW_DISCOVERY", show_envvar=True, show_default=True,
                 help="Register at the router itself, or at the Consul agent of this machine, "
                      "which every router with discovery.consul hears of."),
    click.option("--consul", default=_DEFAULT_CONSUL, show_default=True, metavar="URL",
                 envvar="AIFLOW_CONSUL", show_envvar=True,
                 help="The Consul agent of this machine."),
    click.option("--consul-token-file", type=click.Path(path_type=Path, dir_okay=False),
                 envvar="AIFLOW_CONSUL_TOKEN_FILE", show_envvar=True,
                 help="File with an ACL token that has service:write. Read anew when it changes."),
    click.option("--standalone", is_flag=True, help="Register nowhere."),
    click.option("--zone", default="", help="Failure zone told to the router."),
    click.option("--weight", type=click.IntRange(1, 1000), default=1, show_default=True,
                 metavar="N", help="Relative share of calls."),
)  # fmt: skip


def registers(command: F) -> F:
    """Adds the options; the command gets `registrar`, made of them, beside zone and weight."""

    @functools.wraps(command)
    def with_registrar(
        *,
        router: str,
        api_key: str | None,
        discovery: Discovery,
        consul: str,
        consul_token_file: Path | None,
        standalone: bool,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        **options: Any,
    ) -> Any:
        _check(discovery, standalone=standalone)
        registrar = None
        if not standalone:
            registrar = (
                _at_consul(consul, consul_token_file)
                if discovery == "consul"
                else _at_router(router, api_key, (tls_ca, tls_cert, tls_key))
            )
        return command(registrar=registrar, **options)

    for option in reversed(_OPTIONS):
        with_registrar = option(with_registrar)
    return encrypts(with_registrar)  # type: ignore[return-value]  # click takes its arguments by name


def _check(discovery: Discovery, *, standalone: bool) -> None:
    """Refuses what would have no effect; the environment is set for many and may be idle."""
    if standalone:
        for name, option in (_ANYWHERE | _ONLY["embedded"] | _ONLY["consul"]).items():
            if _typed(name):
                raise click.UsageError(
                    f"{option} has no effect with --standalone, which registers nowhere: leave out"
                    " one of them"
                )
        return
    other: Discovery = "embedded" if discovery == "consul" else "consul"
    for name, option in _ONLY[other].items():
        if _typed(name):
            todo = (
                f"add --discovery consul, or leave {option} out"
                if other == "consul"
                else f"leave {option} out, or say --discovery embedded to register at the router"
            )
            raise click.UsageError(f"{option} has no effect with --discovery {discovery}: {todo}")


def _typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _at_router(
    router: str, api_key: str | None, tls: tuple[str | None, str | None, str | None]
) -> Registrar:
    from aiflow_sdk.errors import AiflowError  # noqa: PLC0415 - see the top
    from aiflow_servers.runtime.lease_registrar import LeaseRegistrar  # noqa: PLC0415 - see the top

    try:
        return LeaseRegistrar(router=router, api_key=api_key, tls=tls_of(*tls))
    except AiflowError as error:
        raise click.UsageError(error.message) from error


def _at_consul(consul: str, token_file: Path | None) -> Registrar:
    from aiflow_sdk.errors import AiflowError  # noqa: PLC0415 - see the top
    from aiflow_servers.runtime.consul_registrar import (  # noqa: PLC0415 - see the top
        ConsulRegistrar,
    )

    if token_file is not None:
        try:
            token_file.read_bytes()
        except OSError as error:
            raise click.UsageError(
                f"--consul-token-file {token_file} cannot be read: {error.strerror}"
            ) from error
    try:
        return ConsulRegistrar(consul=consul, token_file=token_file)
    except AiflowError as error:
        raise click.UsageError(f"--consul: {error.message}") from error
