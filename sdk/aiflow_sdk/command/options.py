"""The options that every command which calls the router takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from aiflow_sdk._settings import DEFAULT_ROUTER, TLS
from aiflow_sdk.client import Client
from aiflow_sdk.errors import BadInputError


def calls_router(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --router, --api-key, --timeout and --tls-ca; passes on one `client`, and closes it."""

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
    @click.option(
        "--tls-ca",
        type=click.Path(exists=True, dir_okay=False),
        help="Encrypt, and trust the certificates in this PEM file.",
    )
    @functools.wraps(command)
    def wrapped(
        *,
        router: str,
        api_key: str | None,
        timeout_s: float,
        tls_ca: str | None,
        **rest: Any,
    ) -> None:
        tls = TLS(ca_file=tls_ca) if tls_ca else None
        try:
            client = Client(router, api_key=api_key, timeout_s=timeout_s, tls=tls)
        except BadInputError as error:
            raise click.UsageError(error.message) from error
        with client:
            command(client=client, **rest)

    return wrapped
