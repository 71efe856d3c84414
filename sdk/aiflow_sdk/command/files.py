"""Bytes of an answer as files: what they are by their first bytes, and where they were written."""

from __future__ import annotations

from pathlib import Path

import click


def media_suffix(data: bytes) -> str:
    """One of .png, .jpg, .webp and .svg; empty for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return ".svg" if data.lstrip()[:4] == b"<svg" else ""


def as_text(data: bytes) -> str | None:
    """The text that the bytes are; None where they are none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t" for c in text) else None


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise click.UsageError(f"'{path}' cannot be read: {error.strerror}") from error


def write(folder: Path, stem: str, data: bytes) -> Path:
    """Writes `data` under a name of its kind and returns the path."""
    path = folder / f"{stem}{media_suffix(data) or '.bin'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise click.ClickException(f"'{path}' cannot be written: {error.strerror}") from error
    return path
