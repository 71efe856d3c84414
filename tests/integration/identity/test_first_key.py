"""The key that the first start makes, which may do anything: one, in a file for its owner alone."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from integration.identity.kit import stored
from integration.router.kit import infer
from sqlalchemy import select

from aiflow_router.identity.first_key import make
from aiflow_router.storage.database import StorageError, opened, reading
from aiflow_router.storage.tables.tenancy import AUDIT, KEYS


async def test_the_first_start_leaves_a_key_that_may_do_anything(
    storage_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.key"
    async with stored(storage_url, tmp_path) as all_:
        key = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert await all_.call(key) == infer("m")
        assert await all_.call(key, "/aiflow.admin.v1.PolicyService/List")
    said = capsys.readouterr().out
    assert str(file) in said
    assert key not in said


async def test_a_second_start_makes_no_other_key(storage_url: str, tmp_path: Path) -> None:
    async with opened(storage_url) as engine:
        made = [await make(engine, tmp_path / "a.key"), await make(engine, tmp_path / "b.key")]
        async with reading(engine) as connection:
            keys = (await connection.execute(select(KEYS.c.key))).scalars().all()
            told = (await connection.execute(select(AUDIT.c.action))).scalars().all()
    assert made == [tmp_path / "a.key", None]
    assert len(keys) == 1
    assert told == ["tenant.create", "member.create", "key.create"]


async def test_many_first_starts_at_once_make_one_key(storage_url: str, tmp_path: Path) -> None:
    async def start(number: int) -> Path | None:
        async with opened(storage_url) as engine:
            return await make(engine, tmp_path / f"{number}.key")

    made = await asyncio.gather(*(start(number) for number in range(4)))
    assert len([path for path in made if path is not None]) == 1
    assert sum((tmp_path / f"{number}.key").is_file() for number in range(4)) == 1


async def test_a_file_that_is_no_key_is_never_written_over(
    storage_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "id_ed25519"
    file.write_text("somebody's")
    async with opened(storage_url) as engine:
        with pytest.raises(StorageError, match="there is another file of that name"):
            await make(engine, file)
        assert file.read_text() == "somebody's"
        assert await make(engine, tmp_path / "admin.key")


async def test_a_key_left_by_a_crash_is_written_anew(storage_url: str, tmp_path: Path) -> None:
    """The file came first: nobody knows that key."""
    file = tmp_path / "admin.key"
    file.write_text("aif_00000000_left")
    async with opened(storage_url) as engine:
        assert await make(engine, file)
    assert not file.read_text().startswith("aif_00000000_left")
