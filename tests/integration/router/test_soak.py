"""A minute of mixed load leaves the router as it was; ten are `make soak`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[3] / "benchmarks" / "soak.py"
SECONDS = 60
# In a minute malloc does not get to the size that it keeps for gRPC's threads, each of which has a
# heap of its own by default: with one for all, what else grows is seen, and nothing besides.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


@pytest.mark.soak
@pytest.mark.timeout(4 * SECONDS)
def test_a_minute_of_mixed_load_leaves_memory_and_descriptors_as_they_were() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", str(SECONDS)],
        check=False,
        env={**os.environ, **ONE_HEAP},
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
