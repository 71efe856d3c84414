"""Fills a folder as `aiflow weights` does, with files of a lock of the test's own.

`python run.py FOLDER SHA256_OF_PACKAGE [LINE]`: prints what is reported, and is killed at LINE.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from aiflow_servers.weights import ensure, lock

CONTENT = {"one.bin": b"1" * 100_000, "two.bin": b"2" * 100_000}


def lock_of(package_sha256: str) -> lock.Lock:
    """Two files of one package."""
    package = lock.Package(
        registry="pypi",
        name="tiny-weights",
        version="1.0",
        sha256=package_sha256,
        licence="CC0-1.0",
        origin="this test",
    )
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    files = tuple(
        lock.File(
            group="weights",
            result=name,
            package=package,
            member=f"tiny/{name}",
            member_sha256=sha256,
            sha256=sha256,
        )
        for name, sha256 in sums.items()
    )
    return lock.Lock(converter=(), npm="", files=files)


def main(folder: str, package_sha256: str, killed_at: str = "") -> None:
    def report(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - the test reads it
        if killed_at and line.startswith(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)

    mine = lock_of(package_sha256)
    lock.read = lambda: mine  # type: ignore[assignment]
    ensure(cache=Path(folder), report=report)


if __name__ == "__main__":
    main(*sys.argv[1:])
