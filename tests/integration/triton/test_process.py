"""A server process as its keeper waits for it; any program will do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aiflow_servers.triton.process import Launch, TritonProcess


async def test_looking_whether_it_has_ended_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused: Any = None
    launch = Launch(
        installation=unused, repository=tmp_path, models=(), weights=tmp_path, log=tmp_path / "log"
    )
    process = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    waits, wait = [], process.wait

    def counted() -> Any:
        waits.append(wait())
        return waits[-1]

    monkeypatch.setattr(process, "wait", counted)
    running = TritonProcess(launch, process, (1, 2))
    try:
        for _ in range(3):
            assert not await running.ended(within_s=0.01)
        running.kill()
        assert await running.ended(within_s=10)
    finally:
        await running.stop(0)
    assert len(waits) == 1
