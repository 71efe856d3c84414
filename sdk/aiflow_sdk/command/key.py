"""`aiflow key ...`: keys of members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from aiflow_sdk.client import Client
from aiflow_sdk.command.administration import (
    Span,
    as_json,
    say_fields,
    say_json,
    say_key,
    say_table,
    tenant_option,
    time_of,
)
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.tenancy import TenancyAdmin


def _scope(patterns: str, help_: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{patterns.removesuffix('s')}", patterns, multiple=True, metavar="PATTERN", help=help_
    )


@click.group()
def key() -> None:
    """Make, see, change, rotate and revoke the keys that members call with.

    A key is shown once, when it is made; later it is known by its beginning, such as aif_1a2b3c4d.

    \b
    Example:
      export AIFLOW_API_KEY=$(aiflow key create ann --name laptop --model 'gpt-*' --lives 90d)
      aiflow key whoami
      aiflow key rotate --overlap 2h
    """  # noqa: D301 - click's mark for lines that are kept as they are


@key.command()
@click.argument("member")
@click.option("--name", required=True, help="What its owner calls it, such as laptop.")
@tenant_option
@_scope("models", "Only for models like this, such as 'gpt-*'; may be repeated. Default: all.")
@_scope(
    "methods",
    "Only for methods like this, such as '/aiflow.imaging.v1.ImagingService/*'; may be repeated. "
    "Default: all.",
)
@click.option(
    "--may",
    multiple=True,
    type=click.Choice(["call", "register", "admin"]),
    help="What it is for; may be repeated. Default: call, and admin for who administers.",
)
@click.option(
    "--lives",
    "lives_s",
    type=Span(),
    default=0.0,
    metavar="SPAN",
    help="Such as 12h or 90d; then it ends by itself. Default: for ever.",
)
@as_json
@calls_router
def create(
    *,
    client: Client,
    member: str,
    name: str,
    tenant: str,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    may: tuple[str, ...],
    lives_s: float,
    as_json: bool,
) -> None:
    """Make a key of MEMBER and print it, this once; nothing else is on stdout."""
    made = TenancyAdmin(client).create_key(
        member,
        name=name,
        tenant=tenant,
        models=models,
        methods=methods,
        may=may,
        lives_s=lives_s,
    )
    say_key(made, as_json=as_json)


@key.command("list")
@tenant_option
@click.option("--member", default="", help="Only of this member.")
@click.option("--ended", is_flag=True, help="Those that have ended too.")
@as_json
@calls_router
def list_(*, client: Client, tenant: str, member: str, ended: bool, as_json: bool) -> None:
    """List the keys that you may see, by their beginnings."""
    found = list(TenancyAdmin(client).keys(tenant, member=member, ended=ended))
    if as_json:
        say_json(found)
        return
    say_table(
        ("key", "name", "member", "may", "models", "methods", "expires", "last used", "state"),
        (
            (
                one.key,
                one.name,
                one.member,
                ", ".join(one.may),
                ", ".join(one.models) or "all",
                ", ".join(one.methods) or "all",
                time_of(one.expires_s),
                time_of(one.last_used_s),
                one.state,
            )
            for one in found
        ),
        empty="there is no key: make one with `aiflow key create MEMBER --name NAME`",
    )


@key.command()
@click.argument("key", default="")
@as_json
@calls_router
def show(*, client: Client, key: str, as_json: bool) -> None:
    """Show the key that begins with KEY; the one that you call with without it."""
    found = TenancyAdmin(client).key(key)
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@key.command("set")
@click.argument("key")
@click.option("--name", help="What its owner calls it.")
@_scope("models", "Only for models like this from now on; may be repeated, '' for all.")
@_scope("methods", "Only for methods like this from now on; may be repeated, '' for all.")
@as_json
@calls_router
def set_(
    *,
    client: Client,
    key: str,
    name: str | None,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    as_json: bool,
) -> None:
    """Change what is given of KEY, which stays the same for whoever has it.

    \b
    Example:
      aiflow key set aif_1a2b3c4d --model 'gpt-*' --model detector
      aiflow key set aif_1a2b3c4d --model ''
    """  # noqa: D301 - click's mark for lines that are kept as they are
    if name is None and not models and not methods:
        raise click.UsageError("Give what to change: --name, --model or --method.")
    found = TenancyAdmin(client).update_key(
        key, name=name, models=_patterns(models), methods=_patterns(methods)
    )
    if as_json:
        say_json(found)
    else:
        say_fields(found)


def _patterns(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """None where none is given, none where '' is."""
    if not given:
        return None
    return () if given == ("",) else given


@key.command()
@click.argument("key", default="")
@click.option(
    "--overlap",
    "overlap_s",
    type=Span(),
    metavar="SPAN",
    help="How long the old one works on, such as 2h; 0s: not at all. Default: 1d.",
)
@click.option(
    "--lives",
    "lives_s",
    type=Span(),
    metavar="SPAN",
    help="How long the new one lives, 0s for ever; only an administrator chooses. Default: until "
    "the old one would have ended.",
)
@as_json
@calls_router
def rotate(
    *, client: Client, key: str, overlap_s: float | None, lives_s: float | None, as_json: bool
) -> None:
    """Make a key in place of KEY and print it, this once; of the one that you call with without it.

    It is for the same as the old one, which works on for the overlap.
    """
    made = TenancyAdmin(client).rotate_key(key, overlap_s=overlap_s, lives_s=lives_s)
    say_key(made, as_json=as_json)


@key.command()
@click.argument("key")
@as_json
@calls_router
def revoke(*, client: Client, key: str, as_json: bool) -> None:
    """End KEY, given by its beginning: no call that begins later gets through with it."""
    ended = TenancyAdmin(client).revoke_key(key)
    if as_json:
        say_json(ended)
    else:
        click.echo(f"key {ended.key} of {ended.tenant}/{ended.member} does not work any more")


@key.command()
@as_json
@calls_router
def whoami(*, client: Client, as_json: bool) -> None:
    """Show whom the router takes you for."""
    found = TenancyAdmin(client).who_am_i()
    if as_json:
        say_json(found)
    else:
        say_fields(found)
