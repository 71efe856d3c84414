"""The database: opened, brought to the newest schema, and closed.

SQLite is for one router on one machine: its workers share the file, writers take turns. Several
routers share a Postgres.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config as Alembic
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aiflow_router.storage import notices

_log = structlog.get_logger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
# How long a writer of SQLite waits for its turn.
_BUSY_MS = 10_000
_AGAIN_S = 0.02
# Any number, the same for all: who migrates, or changes tenants and keys, holds it.
MIGRATING = 7600_01
CHANGING = 7600_02
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}


class StorageError(Exception):
    """The database cannot be used; the message says why and what to do."""


def parsed(url: str) -> URL:
    """Raises ValueError, with what to write instead."""
    try:
        found = make_url(url)
    except ArgumentError:
        found = None
    if found is None or found.get_backend_name() not in _DRIVERS:
        raise ValueError(
            "must be sqlite:///FILE, or postgresql://USER:PASSWORD@HOST:5432/DATABASE for several "
            "routers"
        )
    if found.get_backend_name() == "sqlite" and found.database in (None, "", ":memory:"):
        raise ValueError("needs a file: sqlite:///aiflow.db; what is in memory is lost at the end")
    return found.set(drivername=_DRIVERS[found.get_backend_name()])


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncEngine]:
    """The database at `url`, with the newest schema. Raises StorageError."""
    found = parsed(url)
    shown = found.render_as_string(hide_password=True)
    sqlite = found.get_backend_name() == "sqlite"
    if sqlite:
        assert found.database is not None  # noqa: S101 - `parsed` has seen to it
        Path(found.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        found, pool_pre_ping=not sqlite, connect_args={} if sqlite else dict(notices.PATIENCE)
    )
    if sqlite:
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    try:
        try:
            await _migrated(engine)
        except (SQLAlchemyError, OSError) as error:
            why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StorageError(
                f"the database {shown} cannot be used: {why}. Check `storage.url`, and that the "
                "server runs and lets this user in"
            ) from error
        yield engine
    finally:
        await asyncio.shield(engine.dispose())


@asynccontextmanager
async def changing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that changes tenants or keys; one at a time, over all routers.

    So the numbers of the audit log rise in the order of commits, and who follows it misses none.
    """
    async with engine.begin() as connection:
        await _locked(connection, CHANGING)
        yield connection
        await notices.tell(connection)


def migrate(connection: Connection) -> None:
    """Brings the schema to the newest version. Raises StorageError for one that is newer still."""
    alembic = Alembic()
    alembic.set_main_option("script_location", str(_MIGRATIONS))
    alembic.attributes["connection"] = connection
    before = MigrationContext.configure(connection).get_current_revision()
    newest = ScriptDirectory.from_config(alembic).get_current_head()
    if before == newest:
        return
    try:
        command.upgrade(alembic, "head")
    except CommandError as error:
        raise StorageError(
            f'the database has the schema "{before}", which this version of AIFlow does not know: '
            f"run the version that wrote it, or a newer one ({error})"
        ) from error
    _log.info("the database has a new schema", before=before or "none", now=newest)


async def _migrated(engine: AsyncEngine) -> None:
    """Brings the schema to the newest version.

    Of several that turn a new file of SQLite to WAL at once, one may be told that it is locked
    without the wait for which it has asked: it tries again.
    """
    end_s = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            async with engine.begin() as connection:
                await _locked(connection, MIGRATING)
                await connection.run_sync(migrate)
        except OperationalError as error:
            busy = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end_s:
                raise
            await asyncio.sleep(_AGAIN_S)
        else:
            return


async def _locked(connection: AsyncConnection, number: int) -> None:
    """Until the transaction ends; a transaction of SQLite that may write is alone anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def _prepare_sqlite(connection: Any, _: object) -> None:
    # Python's own handling begins transactions too late; see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_MS}",
        "journal_mode = WAL",
        # Every commit is on the disk: credits depend on it.
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Takes the write lock at once where the transaction may write.

    One that began by reading could not wait for it: what it had read may be old by then.
    """
    reads = connection.get_execution_options().get("aiflow_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that only reads, and waits for no writer."""
    async with engine.connect() as connection:
        await connection.execution_options(aiflow_reads=True)
        async with connection.begin():
            yield connection
