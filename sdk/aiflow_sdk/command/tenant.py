"""`aiflow tenant ...`: who shares the models, their departments, and what was changed."""

from __future__ import annotations

import itertools
import json

import click

from aiflow_sdk.client import Client
from aiflow_sdk.command.administration import (
    as_json,
    limit_option,
    say_fields,
    say_json,
    say_table,
    tenant_option,
    time_of,
)
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.tenancy import TenancyAdmin

pays_first = click.option(
    "--pays-first",
    type=click.Choice(["member", "pool"]),
    help="The account that pays first: the member's own, or the tenant's pool.",
)
when_out = click.option(
    "--when-out",
    type=click.Choice(["refuse", "pool"]),
    help="When a member's account is empty: refuse the call, or use the pool.",
)


@click.group()
def tenant() -> None:
    """Make, see and change tenants, who share the models of one router.

    A tenant has members (`aiflow member`), who call with keys (`aiflow key`). Every change is in
    the audit log (`aiflow tenant audit`).

    \b
    Example, with the key of a platform admin (the first start says where it is):
      export AIFLOW_API_KEY=$(cat aiflow-admin.key)
      aiflow tenant create acme --weight 2
      aiflow member create ann --tenant acme --role tenant_admin
      aiflow key create ann --tenant acme --name laptop
    """  # noqa: D301 - click's mark for lines that are kept as they are


@tenant.command()
@click.argument("tenant")
@click.option(
    "--weight",
    type=float,
    default=1.0,
    show_default=True,
    help="Its share where tenants wait for the same: 2 is served twice as often as 1.",
)
@pays_first
@when_out
@as_json
@calls_router
def create(
    *,
    client: Client,
    tenant: str,
    weight: float,
    pays_first: str | None,
    when_out: str | None,
    as_json: bool,
) -> None:
    """Make TENANT; a platform admin may."""
    made = TenancyAdmin(client).create_tenant(
        tenant, weight=weight, pays_first=pays_first or "member", when_out=when_out or "pool"
    )
    if as_json:
        say_json(made)
        return
    click.echo(f"tenant {made.tenant} is made. It needs somebody who administers it:")
    click.echo(f"  aiflow member create NAME --tenant {made.tenant} --role tenant_admin")
    click.echo(f"  aiflow key create NAME --tenant {made.tenant} --name laptop")


@tenant.command("list")
@as_json
@calls_router
def list_(*, client: Client, as_json: bool) -> None:
    """List the tenants that you may see."""
    found = list(TenancyAdmin(client).tenants())
    if as_json:
        say_json(found)
        return
    say_table(
        ("tenant", "weight", "pays first", "when out", "created", "disabled"),
        (
            (
                one.tenant,
                f"{one.weight:g}",
                one.pays_first,
                one.when_out,
                time_of(one.created_s),
                time_of(one.disabled_s),
            )
            for one in found
        ),
        empty="there is no tenant yet: make one with `aiflow tenant create NAME`",
    )


@tenant.command()
@click.argument("tenant", default="")
@as_json
@calls_router
def show(*, client: Client, tenant: str, as_json: bool) -> None:
    """Show TENANT; your own without one."""
    found = TenancyAdmin(client).tenant(tenant)
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@tenant.command("set")
@click.argument("tenant", default="")
@click.option("--weight", type=float, help="Its share where tenants wait; a platform admin may.")
@pays_first
@when_out
@as_json
@calls_router
def set_(
    *,
    client: Client,
    tenant: str,
    weight: float | None,
    pays_first: str | None,
    when_out: str | None,
    as_json: bool,
) -> None:
    """Change what is given of TENANT; of your own without one."""
    if weight is None and pays_first is None and when_out is None:
        raise click.UsageError("Give what to change: --weight, --pays-first or --when-out.")
    found = TenancyAdmin(client).update_tenant(
        tenant, weight=weight, pays_first=pays_first, when_out=when_out
    )
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@tenant.command()
@click.argument("tenant")
@calls_router
def disable(*, client: Client, tenant: str) -> None:
    """Let no key of TENANT work until it is enabled again; a platform admin may."""
    TenancyAdmin(client).update_tenant(tenant, disabled=True)
    click.echo(f"no key of tenant {tenant} works any more")


@tenant.command()
@click.argument("tenant")
@calls_router
def enable(*, client: Client, tenant: str) -> None:
    """Let the keys of TENANT work again."""
    TenancyAdmin(client).update_tenant(tenant, disabled=False)
    click.echo(f"keys of tenant {tenant} work again")


@tenant.command()
@tenant_option
@click.option("--kind", default="", help="Only of this kind, such as key or member.")
@click.option("--subject", default="", help="Only of this name or id.")
@limit_option
@as_json
@calls_router
def audit(
    *, client: Client, tenant: str, kind: str, subject: str, limit: int, as_json: bool
) -> None:
    """Show what was changed, by whom, the latest first; a tenant admin may."""
    found = TenancyAdmin(client).changes(tenant, kind=kind, subject=subject)
    changes = list(itertools.islice(found, limit))
    if as_json:
        say_json(changes)
        return
    say_table(
        ("number", "when", "who", "what", "tenant", "subject", "details"),
        (
            (
                str(one.number),
                time_of(one.at_s),
                one.actor,
                one.action,
                one.tenant,
                one.subject,
                json.dumps(one.details, ensure_ascii=False) if one.details else "",
            )
            for one in changes
        ),
        empty="nothing was changed",
    )


@tenant.group()
def department() -> None:
    """Make, see and close departments of a tenant."""


@department.command("create")
@click.argument("department")
@tenant_option
@calls_router
def create_department(*, client: Client, department: str, tenant: str) -> None:
    """Make DEPARTMENT; a tenant admin may."""
    made = TenancyAdmin(client).create_department(department, tenant=tenant)
    click.echo(f"department {made.department} of tenant {made.tenant} is made")


@department.command("list")
@tenant_option
@as_json
@calls_router
def list_departments(*, client: Client, tenant: str, as_json: bool) -> None:
    """List the departments that you may see."""
    found = list(TenancyAdmin(client).departments(tenant))
    if as_json:
        say_json(found)
        return
    say_table(
        ("department", "created", "disabled"),
        ((one.department, time_of(one.created_s), time_of(one.disabled_s)) for one in found),
        empty="there is no department: make one with `aiflow tenant department create NAME`",
    )


@department.command("disable")
@click.argument("department")
@tenant_option
@calls_router
def disable_department(*, client: Client, department: str, tenant: str) -> None:
    """Let no key of a member of DEPARTMENT work until it is enabled again."""
    TenancyAdmin(client).update_department(department, tenant=tenant, disabled=True)
    click.echo(f"no key of department {department} works any more")


@department.command("enable")
@click.argument("department")
@tenant_option
@calls_router
def enable_department(*, client: Client, department: str, tenant: str) -> None:
    """Let the keys of DEPARTMENT work again."""
    TenancyAdmin(client).update_department(department, tenant=tenant, disabled=False)
    click.echo(f"keys of department {department} work again")
