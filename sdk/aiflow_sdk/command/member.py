"""`aiflow member ...`: people and programs of a tenant, and how they come in."""

from __future__ import annotations

import click

from aiflow_sdk.client import Client
from aiflow_sdk.command.administration import (
    Span,
    as_json,
    role_option,
    say_fields,
    say_json,
    say_key,
    say_table,
    tenant_option,
    time_of,
)
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.tenancy import TenancyAdmin

# An environment variable, because a command line is visible to others.
secret_argument = click.argument("secret", envvar="AIFLOW_APPLICATION")


@click.group()
def member() -> None:
    """Make, see, change and invite members of a tenant.

    Either an administrator makes a member and makes a key for it, or sends a code, by which
    somebody applies, and approves: then nobody but the applicant sees the key.

    \b
    Example:
      aiflow member invite --department sales      # prints a code to send
      aiflow member apply CODE ann                 # the invited one; prints a secret
      aiflow member applications                   # who waits
      aiflow member approve app_1a2b3c4d
      aiflow member take-key SECRET                # the invited one; prints the key
    """  # noqa: D301 - click's mark for lines that are kept as they are


@member.command()
@click.argument("member")
@tenant_option
@click.option("--department", default="", help="Of this department. Default: none, or your own.")
@role_option
@as_json
@calls_router
def create(
    *,
    client: Client,
    member: str,
    tenant: str,
    department: str,
    role: str | None,
    as_json: bool,
) -> None:
    """Make MEMBER; an administrator of its department or tenant may."""
    made = TenancyAdmin(client).create_member(
        member, tenant=tenant, department=department, role=role or "member"
    )
    if as_json:
        say_json(made)
        return
    click.echo(f"{made.role} {made.member} of tenant {made.tenant} is made. It needs a key:")
    click.echo(f"  aiflow key create {made.member} --tenant {made.tenant} --name laptop")


@member.command("list")
@tenant_option
@click.option("--department", default="", help="Only of this department.")
@as_json
@calls_router
def list_(*, client: Client, tenant: str, department: str, as_json: bool) -> None:
    """List the members that you may see."""
    found = list(TenancyAdmin(client).members(tenant, department=department))
    if as_json:
        say_json(found)
        return
    say_table(
        ("member", "department", "role", "created", "disabled"),
        (
            (
                one.member,
                one.department or "-",
                one.role,
                time_of(one.created_s),
                time_of(one.disabled_s),
            )
            for one in found
        ),
        empty="there is no member: make one with `aiflow member create NAME`",
    )


@member.command()
@click.argument("member", default="")
@tenant_option
@as_json
@calls_router
def show(*, client: Client, member: str, tenant: str, as_json: bool) -> None:
    """Show MEMBER; you yourself without one."""
    found = TenancyAdmin(client).member(member, tenant=tenant)
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@member.command("set")
@click.argument("member")
@tenant_option
@click.option("--department", help="Move to this department; '' for none.")
@role_option
@as_json
@calls_router
def set_(
    *,
    client: Client,
    member: str,
    tenant: str,
    department: str | None,
    role: str | None,
    as_json: bool,
) -> None:
    """Change what is given of MEMBER."""
    if department is None and role is None:
        raise click.UsageError("Give what to change: --department or --role.")
    found = TenancyAdmin(client).update_member(
        member, tenant=tenant, department=department, role=role
    )
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@member.command()
@click.argument("member")
@tenant_option
@calls_router
def disable(*, client: Client, member: str, tenant: str) -> None:
    """Let no key of MEMBER work until it is enabled again."""
    TenancyAdmin(client).update_member(member, tenant=tenant, disabled=True)
    click.echo(f"no key of member {member} works any more")


@member.command()
@click.argument("member")
@tenant_option
@calls_router
def enable(*, client: Client, member: str, tenant: str) -> None:
    """Let the keys of MEMBER work again."""
    TenancyAdmin(client).update_member(member, tenant=tenant, disabled=False)
    click.echo(f"keys of member {member} work again")


@member.command()
@tenant_option
@click.option("--department", default="", help="Into this department. Default: none, or your own.")
@role_option
@click.option(
    "--uses",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many may apply by the code.",
)
@click.option(
    "--lives",
    "lives_s",
    type=Span(),
    default=0.0,
    metavar="SPAN",
    help="How long the code is good, such as 12h; at most 90d. Default: 7d.",
)
@as_json
@calls_router
def invite(
    *,
    client: Client,
    tenant: str,
    department: str,
    role: str | None,
    uses: int,
    lives_s: float,
    as_json: bool,
) -> None:
    """Make a code by which somebody may apply, and print it, this once."""
    made = TenancyAdmin(client).invite(
        tenant=tenant, department=department, role=role or "member", uses=uses, lives_s=lives_s
    )
    if as_json:
        say_json(made)
        return
    found = made.invitation
    click.echo(
        f"invitation {found.invitation} into {found.tenant} as {found.role}, good until "
        f"{time_of(found.expires_s)}; this code is shown once, send it to whom you invite:",
        err=True,
    )
    click.echo(made.code)


@member.command()
@tenant_option
@click.option("--ended", is_flag=True, help="Those that have ended too.")
@as_json
@calls_router
def invitations(*, client: Client, tenant: str, ended: bool, as_json: bool) -> None:
    """List the invitations that you may see."""
    found = list(TenancyAdmin(client).invitations(tenant, ended=ended))
    if as_json:
        say_json(found)
        return
    say_table(
        ("invitation", "department", "role", "uses left", "expires", "revoked"),
        (
            (
                one.invitation,
                one.department or "-",
                one.role,
                str(one.uses_left),
                time_of(one.expires_s),
                time_of(one.revoked_s),
            )
            for one in found
        ),
        empty="nobody is invited: `aiflow member invite` makes a code",
    )


@member.command()
@click.argument("invitation")
@calls_router
def uninvite(*, client: Client, invitation: str) -> None:
    """End INVITATION, given by its beginning; who has applied by it stays."""
    TenancyAdmin(client).revoke_invitation(invitation)
    click.echo(f"nobody can apply by {invitation} any more")


@member.command()
@click.argument("code")
@click.argument("member")
@click.option("--note", default="", help="Who you are, for those who decide.")
@as_json
@calls_router
def apply(*, client: Client, code: str, member: str, note: str, as_json: bool) -> None:
    """Ask to become MEMBER, by the CODE of an invitation, and print a secret, this once.

    No key is needed. `aiflow member take-key` with the secret gets your key when it is approved.
    """
    made = TenancyAdmin(client).apply(code, member, note=note)
    if as_json:
        say_json(made)
        return
    click.echo(
        f"application {made.application.application} to {made.application.tenant} waits; with this "
        "secret, shown once, ask with `aiflow member applied`, then `aiflow member take-key`:",
        err=True,
    )
    click.echo(made.secret)


@member.command()
@secret_argument
@as_json
@calls_router
def applied(*, client: Client, secret: str, as_json: bool) -> None:
    """Show what was decided about your application; SECRET is what `apply` printed.

    Better set it in the environment as AIFLOW_APPLICATION, where nobody sees it.
    """
    found = TenancyAdmin(client).application(secret)
    if as_json:
        say_json(found)
    else:
        say_fields(found)


@member.command("take-key")
@secret_argument
@click.option("--name", default="", help="What you call the key. Default: first.")
@as_json
@calls_router
def take_key(*, client: Client, secret: str, name: str, as_json: bool) -> None:
    """Print the key of your application, this once, when it is approved.

    SECRET is what `apply` printed; better set it in the environment as AIFLOW_APPLICATION.
    """
    say_key(TenancyAdmin(client).take_key(secret, name=name), as_json=as_json)


@member.command()
@tenant_option
@click.option(
    "--state",
    type=click.Choice(["waiting", "approved", "refused", "taken", "any"]),
    default="waiting",
    show_default=True,
    help="Only in this state.",
)
@as_json
@calls_router
def applications(*, client: Client, tenant: str, state: str, as_json: bool) -> None:
    """List who asks to become a member."""
    wanted = "" if state == "any" else state
    found = list(TenancyAdmin(client).applications(tenant, state=wanted))
    if as_json:
        say_json(found)
        return
    say_table(
        ("application", "member", "department", "role", "state", "since", "decided by", "note"),
        (
            (
                one.application,
                one.member,
                one.department or "-",
                one.role,
                one.state,
                time_of(one.created_s),
                one.decided_by or "-",
                one.note,
            )
            for one in found
        ),
        empty="nobody waits" if wanted == "waiting" else "there is no application",
    )


@member.command()
@click.argument("application")
@calls_router
def approve(*, client: Client, application: str) -> None:
    """Make the one who applied a member; `applications` lists them."""
    found = TenancyAdmin(client).approve(application)
    click.echo(f"{found.member} is a {found.role} of {found.tenant}, and can take its key")


@member.command()
@click.argument("application")
@calls_router
def refuse(*, client: Client, application: str) -> None:
    """Refuse APPLICATION."""
    found = TenancyAdmin(client).refuse(application)
    click.echo(f"{found.member} is refused")
