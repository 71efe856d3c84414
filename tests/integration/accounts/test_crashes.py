"""Routers are killed at every commit, and the database under load: the ledger adds up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "ledger.py"


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.timeout(240)
def test_nothing_is_charged_twice_or_lost_whatever_dies(database: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--database", database],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
