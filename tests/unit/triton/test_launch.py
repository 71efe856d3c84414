"""Triton's logs do not fill the disk."""

from __future__ import annotations

import os
from pathlib import Path

from aiflow_servers.triton.launch import log_in


def test_only_the_latest_logs_stay(tmp_path: Path) -> None:
    for age in range(30):
        log = tmp_path / f"{age}.log"
        log.write_text("old")
        os.utime(log, (1_000_000 - age, 1_000_000 - age))
    mine = log_in(tmp_path, print)
    assert mine.name == f"{os.getpid()}.log"
    assert sorted(int(path.stem) for path in tmp_path.glob("*.log")) == list(range(19))
