"""The first key of a new database: a platform admin's, written to a file for whoever can read it.

It is made once. Who has lost it adds a key with `may: [admin]` to aiflow.yaml, and makes another.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.identity import key
from aiflow_router.identity.key import Minted, minted
from aiflow_router.storage.database import StorageError, changing
from aiflow_router.storage.tables.tenancy import AUDIT, KEYS, MEMBERS, TENANTS

_log = structlog.get_logger(__name__)

TENANT = "platform"
MEMBER = "admin"
ACTOR = "the router, at its first start"
# Beside the database, or where the router runs.
FILE = "aiflow-admin.key"


def default_path(engine: AsyncEngine) -> Path:
    database = engine.url.database
    if engine.dialect.name == "sqlite" and database:
        return Path(database).with_name(FILE)
    return Path(FILE)


async def make(
    engine: AsyncEngine, path: Path, *, wall: Callable[[], float] = time.time
) -> Path | None:
    """Where the key was written; None where there is an admin already.

    The file is there before the key is good: a crash in between leaves a file that the next start
    writes anew, never a key that nobody has. Raises StorageError where it cannot be written.
    """
    async with changing(engine) as connection:
        admins = select(MEMBERS.c.member).where(MEMBERS.c.role == "platform_admin").limit(1)
        if (await connection.execute(admins)).first() is not None:
            return None
        made = await minted(connection)
        await _insert(connection, made, now_s=wall())
        try:
            file = await asyncio.to_thread(_write, path, made.text)
        except OSError as error:
            raise StorageError(
                f"the first admin key cannot be written to {path}: {error.strerror}. Set "
                "`auth.admin_key_file` to a file that this user may write"
            ) from error
    _log.warning(
        "the first start has made a key for the platform's admin: it is in this file, and nowhere "
        "else",
        file=str(file),
        key=made.key,
    )
    return file


async def _insert(connection: AsyncConnection, made: Minted, *, now_s: float) -> None:
    tenant = select(TENANTS.c.tenant).where(TENANTS.c.tenant == TENANT)
    if (await connection.execute(tenant)).first() is None:
        await connection.execute(
            insert(TENANTS).values(
                tenant=TENANT, weight=1.0, pays_first="pool", when_out="refuse", created_s=now_s
            )
        )
    member = {"tenant": TENANT, "member": MEMBER, "role": "platform_admin", "created_s": now_s}
    await connection.execute(insert(MEMBERS).values(member))
    await connection.execute(
        insert(KEYS).values(
            key=made.key,
            sha256=made.sha256,
            name="first",
            tenant=TENANT,
            member=MEMBER,
            may=["call", "register", "admin"],
            created_s=now_s,
        )
    )
    audited = {"at_s": now_s, "actor": ACTOR, "tenant": TENANT}
    for action, kind, subject in (
        ("tenant.create", "tenant", TENANT),
        ("member.create", "member", MEMBER),
        ("key.create", "key", made.key),
    ):
        await connection.execute(
            insert(AUDIT).values(**audited, action=action, kind=kind, subject=subject, details={})
        )


def _write(path: Path, text: str) -> Path:
    """Where it is, for this user's eyes. A file is replaced only where it had such a key before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_text(errors="replace").startswith(key.PREFIX):
        raise FileExistsError(errno.EEXIST, "there is another file of that name")
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return path.resolve()
