"""The database: its schema is what the tables say, on both kinds, from nothing and step by step."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as Alembic
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fixtures.postgres import StartPostgres
from sqlalchemy import CheckConstraint, Connection, insert, inspect, select, text

from aiflow_router.storage import database
from aiflow_router.storage.database import StorageError, changing, opened, reading
from aiflow_router.storage.tables import METADATA
from aiflow_router.storage.tables.tenancy import AUDIT, TENANTS

ROW = {
    "at_s": 1.0,
    "actor": "a",
    "action": "tenant.create",
    "tenant": "",
    "kind": "tenant",
    "subject": "acme",
    "details": {},
}


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [*compare_metadata(context, METADATA), *_checks_missing(connection)]


def _checks_missing(connection: Connection) -> set[str]:
    """Alembic compares no CHECK."""
    there = inspect(connection)
    found = {
        str(check["name"])
        for table in there.get_table_names()
        for check in there.get_check_constraints(table)
    }
    wanted = {
        str(constraint.name)
        for table in METADATA.sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    return wanted - found


def _steps() -> list[str]:
    """Every version of the schema, the oldest first."""
    script = ScriptDirectory.from_config(_alembic())
    return [step.revision for step in script.walk_revisions()][::-1]


def _alembic() -> Alembic:
    alembic = Alembic()
    alembic.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    return alembic


def _upgrade(connection: Connection, revision: str) -> None:
    alembic = _alembic()
    alembic.attributes["connection"] = connection
    command.upgrade(alembic, revision)


async def test_an_empty_database_gets_the_schema_that_the_tables_say(storage_url: str) -> None:
    async with opened(storage_url) as engine, engine.begin() as connection:
        assert await connection.run_sync(_differences) == []


@pytest.mark.parametrize("step", _steps())
async def test_a_database_of_an_older_version_is_brought_to_the_newest(
    storage_url: str, step: str
) -> None:
    async with opened(storage_url) as engine, engine.begin() as connection:
        await connection.run_sync(METADATA.drop_all)
        await connection.execute(text("DELETE FROM alembic_version"))
        await connection.run_sync(_upgrade, step)
        if step != _steps()[-1]:
            assert await connection.run_sync(_differences) != []
    async with opened(storage_url) as engine, engine.begin() as connection:
        assert await connection.run_sync(_differences) == []


async def test_what_is_there_stays_when_it_is_opened_again(storage_url: str) -> None:
    async with opened(storage_url) as engine, changing(engine) as connection:
        await connection.execute(insert(AUDIT), [ROW])
    async with opened(storage_url) as engine, reading(engine) as connection:
        assert (await connection.execute(select(AUDIT.c.subject))).scalars().all() == ["acme"]


async def test_a_database_of_a_newer_version_is_refused(storage_url: str) -> None:
    async with opened(storage_url) as engine, engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match='the schema "9999", which this version of AIFlow does'):
        async with opened(storage_url):
            pytest.fail("it was opened")


async def test_many_who_open_an_empty_database_at_once_make_one_schema(storage_url: str) -> None:
    async def use() -> int:
        async with opened(storage_url) as engine, reading(engine) as connection:
            return len((await connection.execute(select(TENANTS))).all())

    assert await asyncio.gather(*(use() for _ in range(5))) == [0] * 5


async def test_numbers_of_the_audit_log_rise_in_the_order_of_commits(storage_url: str) -> None:
    """Who follows it by number would miss one that became visible after a higher one."""
    async with opened(storage_url) as engine:
        seen: list[int] = []

        async def write() -> None:
            async with changing(engine) as connection:
                await connection.execute(insert(AUDIT), [ROW])
                await asyncio.sleep(0)

        async def follow() -> None:
            while len(seen) < 40:
                after = seen[-1] if seen else 0
                async with reading(engine) as connection:
                    found = select(AUDIT.c.number).where(AUDIT.c.number > after)
                    rows = await connection.execute(found.order_by(AUDIT.c.number))
                    seen.extend(rows.scalars())

        async with asyncio.timeout(30):
            await asyncio.gather(follow(), *(write() for _ in range(40)))
        async with reading(engine) as connection:
            numbers = await connection.execute(select(AUDIT.c.number).order_by(AUDIT.c.number))
            assert seen == list(numbers.scalars())


async def test_who_reads_waits_for_no_writer(storage_url: str) -> None:
    async with opened(storage_url) as engine, changing(engine) as writing:
        await writing.execute(insert(AUDIT), [ROW])
        async with asyncio.timeout(5), reading(engine) as connection:
            assert (await connection.execute(select(AUDIT))).all() == []


async def test_a_server_that_does_not_run_is_told_without_the_password(
    start_postgres: StartPostgres,
) -> None:
    server = start_postgres()
    server.kill()
    url = server.url().replace("postgres@", "postgres:very-secret@")
    with pytest.raises(StorageError, match=r"cannot be used: .*refused") as caught:
        async with opened(url):
            pytest.fail("it was opened")
    assert "very-secret" not in str(caught.value)


async def test_what_was_committed_is_there_after_the_server_was_killed(
    start_postgres: StartPostgres,
) -> None:
    server = start_postgres()
    async with opened(server.url()) as engine:
        async with changing(engine) as connection:
            await connection.execute(insert(AUDIT), [ROW])
        server.restart()
        async with reading(engine) as connection:
            assert len((await connection.execute(select(AUDIT))).all()) == 1


async def test_a_new_file_that_another_first_start_holds_is_waited_for(tmp_path: Path) -> None:
    """SQLite does not wait for its turn where the file becomes WAL, whatever it is told."""
    file = tmp_path / "a.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def start() -> None:
        async with opened(f"sqlite:///{file}"):
            pass

    starting = asyncio.create_task(start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    other.execute("COMMIT")
    other.close()
    await asyncio.wait_for(starting, 10)
