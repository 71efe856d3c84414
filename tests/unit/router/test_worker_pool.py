"""How a pool of workers treats those that do not live."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from aiflow_router.processes import pool as pools
from aiflow_router.processes.child import Child, ChildError, Listening
from aiflow_router.processes.pool import Pool
from aiflow_sdk.command.processes import Backoff


async def dies(*, name: str, slot: int, config: Path) -> Child:
    """A worker that ends as soon as it serves."""
    process = await asyncio.create_subprocess_exec("false")
    return Child(
        name=name,
        slot=slot,
        config=config,
        process=process,
        session=aiohttp.ClientSession(),
        folder=config.parent,
        listening=Listening(),
        began_s=asyncio.get_running_loop().time(),
    )


async def test_a_worker_that_dies_over_and_over_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "BACKOFF", Backoff(min_s=0.01, max_s=0.02, reset_after_s=10.0))
    gone: list[tuple[str, bool]] = []

    pool = Pool(
        start=dies,
        config=tmp_path / "config",
        ended=lambda child, *, died: gone.append((child.name, died)),
    )
    await pool.fill(1)
    why = await asyncio.wait_for(pool.failed, 20)
    assert "worker 1 died 5 times in a row" in why
    assert gone == [(name, True) for name in "12345"]
    await pool.stop(within_s=1)


async def test_a_reload_whose_first_worker_does_not_start_changes_nothing(tmp_path: Path) -> None:
    async def fails(*, name: str, slot: int, config: Path) -> Child:
        raise ChildError(f"worker {name} in {slot} of {config.name} does not start")

    pool = Pool(start=fails, config=tmp_path / "old", ended=lambda _, *, died: None)
    begun: list[bool] = []
    with pytest.raises(ChildError, match="new does not start"):
        await pool.roll(tmp_path / "new", count=2, begins=lambda: begun.append(True))
    assert pool.config == tmp_path / "old"
    assert not begun
