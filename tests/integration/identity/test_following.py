"""A directory is as the database is: at the start, after each change, and while nobody answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from fixtures.postgres import StartPostgres
from integration.identity.kit import Office
from integration.router.kit import until
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity import following
from aiflow_router.identity.caller import Caller
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.following import Following
from aiflow_router.identity.key import Minted
from aiflow_router.identity.keys import Keys
from aiflow_router.storage.database import opened, reading
from aiflow_router.storage.tables.tenancy import AUDIT, KEYS
from aiflow_sdk import errors


@dataclass
class Followed:
    """A directory that is kept up to date, and who changes what it follows."""

    office: Office
    directory: Directory
    following: Following
    engine: AsyncEngine

    def who(self, key: Minted) -> Caller:
        return Keys([], required=True, sources=[self.directory]).identify(key.text, "call")

    def knows(self, key: Minted) -> bool:
        return self.directory.find(key.text, key.sha256) is not None

    def refused(self, key: Minted) -> str:
        with pytest.raises(errors.AuthenticationError) as caught:
            self.who(key)
        assert caught.value.reason == "KEY_INVALID"
        assert key.text not in str(caught.value)
        return str(caught.value)

    async def latest(self) -> None:
        """Returns once all that was ever changed is known."""
        async with reading(self.engine) as connection:
            newest = select(AUDIT.c.number).order_by(AUDIT.c.number.desc()).limit(1)
            number = (await connection.execute(newest)).scalar_one()
        async with asyncio.timeout(5):
            await self.directory.reached(number)


@asynccontextmanager
async def followed(url: str, *, names_members: bool = False) -> AsyncIterator[Followed]:
    async with opened(url) as engine:
        directory = Directory(names_members=names_members)
        following = Following(directory, engine)
        await following.load()
        tasks = [asyncio.create_task(work) for work in (following.run(), following.hear())]
        try:
            yield Followed(Office(engine), directory, following, engine)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_key_says_all_of_its_caller(storage_url: str) -> None:
    async with followed(storage_url) as all_:
        await all_.office.tenant("acme", weight=2.5)
        await all_.office.department("acme", "design")
        await all_.office.member("acme", "ann", "tenant_admin", department="design")
        key = await all_.office.key("acme", "ann", may=["call", "register"], models=["gpt-*"])
        await all_.latest()
        caller = all_.who(key)
    assert (caller.tenant, caller.department, caller.member) == ("acme", "design", "ann")
    assert (caller.role, caller.weight, caller.key) == ("tenant_admin", 2.5, key.key)
    assert caller.may == {"call", "register"}
    assert caller.scope is not None
    assert caller.scope.models is not None
    assert caller.scope.models.texts == ("gpt-*",)


async def test_keys_that_were_there_before_are_known_from_the_start(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        await Office(engine).tenant("acme")
        await Office(engine).member("acme", "ann")
        key = await Office(engine).key("acme", "ann")
    async with followed(storage_url) as all_:
        assert all_.who(key).member == "ann"


async def test_what_was_good_is_refused_with_why_once_the_change_is_reached(
    storage_url: str,
) -> None:
    async with followed(storage_url) as all_:
        office = all_.office
        await office.tenant("acme")
        await office.department("acme", "design")
        await office.member("acme", "ann", department="design")
        key = await office.key("acme", "ann")
        await all_.latest()
        # One on the other: what is worst is told.
        for change, why in [
            (office.change_member("acme", "ann", disabled_s=1.0), "its member is disabled"),
            (office.change_department("acme", "design", disabled_s=1.0), "its department is dis"),
            (office.change_tenant("acme", disabled_s=1.0), "its tenant is disabled"),
            (office.change_key(key.key, revoked_s=1.0), "it was revoked"),
        ]:
            assert all_.directory.number >= 0
            number = await change
            async with asyncio.timeout(5):
                await all_.directory.reached(number)
            assert why in all_.refused(key)
        await office.change_tenant("acme", disabled_s=None)
        await office.change_department("acme", "design", disabled_s=None)
        await office.change_member("acme", "ann", disabled_s=None)
        await office.change_key(key.key, revoked_s=None, expires_s=time.time() - 1)
        await all_.latest()
        assert "expired at 20" in all_.refused(key)
        await office.change_key(key.key, expires_s=time.time() + 3600)
        await all_.latest()
        assert all_.who(key).member == "ann"


async def test_a_scope_that_is_not_understood_bars_its_key_and_no_other(storage_url: str) -> None:
    """As none at all it would let everything pass."""
    async with followed(storage_url) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        bad = await all_.office.key("acme", "ann", methods=["a.b.C/D"])
        good = await all_.office.key("acme", "ann", methods=["/a.b.C/D"])
        await all_.latest()
        assert "scope is not understood" in all_.refused(bad)
        assert all_.who(good).member == "ann"


async def test_members_are_known_only_where_tokens_name_them(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        await Office(engine).tenant("acme")
        await Office(engine).member("acme", "ann", "platform_admin")
    async with followed(storage_url) as all_:
        assert all_.directory.member("acme", "ann") is None
    async with followed(storage_url, names_members=True) as all_:
        found = all_.directory.member("acme", "ann")
        assert found is not None
        assert found.may == {"call", "admin"}
        await all_.office.member("acme", "bob")
        await all_.office.change_tenant("acme", disabled_s=1.0)
        await all_.latest()
        for name in ("ann", "bob"):
            found = all_.directory.member("acme", name)
            assert found is not None
            assert found.barred == "its tenant is disabled"


async def test_more_changes_than_a_page_are_all_taken_in(storage_url: str) -> None:
    async with followed(storage_url) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        keys = [await all_.office.key("acme", "ann") for _ in range(20)]
        for _ in range(3):
            async with all_.engine.begin() as connection:
                rows = select(
                    AUDIT.c.at_s, AUDIT.c.actor, AUDIT.c.action, AUDIT.c.tenant, AUDIT.c.kind,
                    AUDIT.c.subject, AUDIT.c.details,
                )  # fmt: skip
                for _ in range(2):
                    columns = [column.name for column in rows.selected_columns]
                    await connection.execute(AUDIT.insert().from_select(columns, rows))
        last = await all_.office.key("acme", "ann")
        await all_.latest()
        assert [all_.who(key).key for key in (*keys, last)] == [key.key for key in (*keys, last)]


async def test_a_change_by_another_process_is_heard_of_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only with the next look, which would come too late here."""
    monkeypatch.setattr(following, "EVERY_S", 60.0)
    async with followed(postgres_url) as all_, opened(postgres_url) as engine:
        await Office(engine).tenant("acme")
        await Office(engine).member("acme", "ann")
        for _ in range(5):
            key = await Office(engine).key("acme", "ann")
            await until(partial(all_.knows, key))


async def test_a_database_put_back_to_an_older_state_is_read_anew(storage_url: str) -> None:
    async with followed(storage_url) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        gone = await all_.office.key("acme", "ann")
        await all_.latest()
        assert all_.who(gone)
        async with all_.engine.begin() as connection:
            await connection.execute(delete(KEYS))
            await connection.execute(delete(AUDIT).where(AUDIT.c.number >= 3))
        await all_.following.look()
        assert "not known" in all_.refused(gone)


async def test_which_keys_were_used_is_written_once(storage_url: str) -> None:
    async with followed(storage_url) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        used, idle = [await all_.office.key("acme", "ann") for _ in range(2)]
        await all_.latest()
        all_.who(used)
        before_s = time.time()
        await all_.following.settle()
        async with reading(all_.engine) as connection:
            rows = await connection.execute(select(KEYS.c.key, KEYS.c.last_used_s))
            written = dict(rows.all())
        assert all_.directory.take_used() == []
    assert written[idle.key] is None
    assert written[used.key] >= before_s


async def test_calls_go_on_by_what_is_known_while_the_server_is_away(
    start_postgres: StartPostgres,
) -> None:
    server = start_postgres()
    async with followed(server.url()) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        key = await all_.office.key("acme", "ann")
        await all_.latest()
        server.kill()
        await until(lambda: bool(all_.who(key)) and all_.directory.age_s() > 1.5)
        server.start()
        later = await all_.office.key("acme", "ann")
        async with asyncio.timeout(10):
            await all_.directory.reached(4 + 1)
        assert all_.who(later)
        assert all_.directory.age_s() < 1.5


async def test_a_server_that_stands_still_holds_up_neither_calls_nor_the_end(
    start_postgres: StartPostgres,
) -> None:
    server = start_postgres()
    async with followed(server.url()) as all_:
        await all_.office.tenant("acme")
        await all_.office.member("acme", "ann")
        key = await all_.office.key("acme", "ann")
        await all_.latest()
        with server.paused():
            all_.directory.nudge()
            began_s = time.monotonic()
            while time.monotonic() - began_s < 1.5:
                all_.who(key)
                await asyncio.sleep(0.01)
        await until(lambda: all_.directory.age_s() < 1, within_s=10)
        async with all_.engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
