"""The options that every command which calls the router takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from aiflow_sdk._settings import DEFAULT_ROUTER, TLS
from aiflow_sdk.client import Client
from aiflow_sdk.errors import BadInputError

F = TypeVar("F", bound=Callable[..., Any])


def encrypts(command: F) -> F:
    """Adds --tls-ca, --tls-cert and --tls-key; see `tls_of`."""
    for name, words in (
        ("ca", "Encrypt, and trust the certificates in this PEM file."),
        ("cert", "Show this certificate, where the router asks for one."),
        ("key", "The key of --tls-cert."),
    ):
        command = click.option(
            f"--tls-{name}",
            envvar=f"AIFLOW_TLS_{name.upper()}",
            show_envvar=True,
            type=click.Path(exists=True, dir_okay=False),
            help=words,
        )(command)
    return command


def tls_of(ca: str | None, cert: str | None, key: str | None) -> TLS | None:
    """None where none is given. Raises BadInputError."""
    if not (ca or cert or key):
        return None
    return TLS(ca_file=ca, cert_file=cert, key_file=key)


def calls_router(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --router, --api-key, --timeout and --tls-*; passes on one `client`, and closes it."""

    @click.option(
        "--router",
        envvar="AIFLOW_ROUTER",
        default=DEFAULT_ROUTER,
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT",
        help="The router's gRPC address.",
    )
    @click.option(
        "--api-key",
        envvar="AIFLOW_API_KEY",
        show_envvar=True,
        metavar="KEY",
        help="Who calls; better set in the environment, where nobody sees it.",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Of the whole call.",
    )
    @encrypts
    @functools.wraps(command)
    def wrapped(
        *,
        router: str,
        api_key: str | None,
        timeout_s: float,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        **rest: Any,
    ) -> None:
        try:
            tls = tls_of(tls_ca, tls_cert, tls_key)
            client = Client(router, api_key=api_key, timeout_s=timeout_s, tls=tls)
        except BadInputError as error:
            raise click.UsageError(error.message) from error
        with client:
            try:
                command(client=client, **rest)
            except UnicodeEncodeError as error:
                # What the shell gave was no text; messages hold nothing else.
                raise click.UsageError(f"{error.object!r} cannot be sent: write UTF-8") from error

    return wrapped
