"""A program that a script in deploy/ looks for: found, or fetched once, or said to be nowhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fixtures import deploy
from fixtures.wheels import OfferWheel

# As the scripts there are.
SCRIPT = f"""
source {deploy.FOLDER}/fetch.sh
name=Mill remedy="Build one"
command -v mill || fetched mill tools/mill from_pypi mill==1
"""
MILL = b"#!/bin/sh\necho mill 1\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AIFLOW_CACHE", str(folder))
    return folder


def started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ran() -> tuple[int, str, str]:
    """Exit code, what it prints, and what it says on stderr."""
    process = started()
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()


def test_it_is_fetched_once_and_then_only_looked_up(cache: Path, offer_wheel: OfferWheel) -> None:
    wheel = offer_wheel("mill", "1", {"tools/mill": MILL})
    code, path, said = ran()
    assert (code, path) == (0, str(cache / "mill/tools/mill"))
    assert "fetching mill==1 from PyPI" in said
    assert subprocess.check_output([path]) == b"mill 1\n"
    wheel.unlink()
    assert ran() == (0, path, "")


def test_the_one_on_path_is_taken_and_nothing_is_fetched(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill = tmp_path / "mill"
    mill.write_bytes(MILL)
    mill.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ran() == (0, str(mill), "")
    assert not cache.exists()


def test_of_two_scripts_at_once_one_fetches(cache: Path, offer_wheel: OfferWheel) -> None:
    offer_wheel("mill", "1", {"tools/mill": MILL})
    runs = [started(), started()]
    ends = [run.communicate(timeout=60) for run in runs]
    assert [out.strip() for out, _ in ends] == [str(cache / "mill/tools/mill")] * 2
    assert sum(err.count("fetching mill") for _, err in ends) == 1


def test_what_cannot_be_fetched_is_said_with_what_to_do(
    cache: Path, offer_wheel: OfferWheel
) -> None:
    offer_wheel("another", "1", {})
    code, path, said = ran()
    assert (code, path) == (1, "")
    assert said.endswith("no Mill: PyPI's mill==1 could not be fetched. Build one")
    assert [file.name for file in cache.iterdir()] == [".fetch.lock"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        pytest.param(
            {"tools/mill": b"#!/bin/sh\necho no libgrain; exit 1\n"},
            "what was fetched does not run here: no libgrain",
            id="it does not run",
        ),
        pytest.param(
            {"tools/saw": MILL}, "what was fetched has no tools/mill", id="it has another"
        ),
    ],
)
def test_what_does_not_work_here_is_not_kept(
    cache: Path, offer_wheel: OfferWheel, program: dict[str, bytes], why: str
) -> None:
    offer_wheel("mill", "1", program)
    code, path, said = ran()
    assert (code, path) == (1, "")
    assert said.endswith(f"no Mill: {why}. Build one")
    assert [file.name for file in cache.iterdir()] == [".fetch.lock"]


def test_a_cache_that_cannot_be_written_is_said_to_be(cache: Path) -> None:
    cache.write_text("a file")
    code, _, said = ran()
    assert code == 1
    assert f"no Mill: {cache} cannot be written: name another folder with AIFLOW_CACHE" in said


def test_what_is_in_its_place_is_left_as_it_is(cache: Path, offer_wheel: OfferWheel) -> None:
    offer_wheel("mill", "1", {"tools/mill": MILL})
    (cache / "mill").mkdir(parents=True)
    code, _, said = ran()
    assert code == 1
    assert f"{cache}/mill is there without it: remove that folder" in said
