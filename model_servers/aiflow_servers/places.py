"""Where AIFlow keeps what it fetched, and where its own files are."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from aiflow_sdk.errors import RefusedError


class CacheNotWritableError(RefusedError):
    """The cache folder cannot be written; the message says why and what to set instead."""

    default_reason = "CACHE_NOT_WRITABLE"


def checkout() -> Path | None:
    """The root of the repository this runs from; None where AIFlow is installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "triton_repo").is_dir() else None


def cache() -> Path:
    """AIFLOW_CACHE, or else `.cache` of the checkout, or else the user's cache folder."""
    if chosen := os.environ.get("AIFLOW_CACHE"):
        return Path(chosen).expanduser().resolve()
    if root := checkout():
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiflow"


def model_repository() -> Path:
    """The models that come with AIFlow."""
    root = checkout()
    return root / "triton_repo" if root else Path(__file__).parent / "_triton_repo"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Makes `folder` and turns a refusal of the disk into an error that says what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        where = error.filename or folder
        raise CacheNotWritableError(
            f"cannot write {where}: {error.strerror or error}. Make room or give the rights, or"
            " name another folder with AIFLOW_CACHE"
        ) from error


@contextlib.contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Keeps other processes from filling `folder` at the same time; they say so and wait.

    The kernel lets go of it even for a process that was killed.
    """
    with writing(folder), (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another run that fills {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
