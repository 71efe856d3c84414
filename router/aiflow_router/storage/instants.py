"""Points in time as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def shown(at_s: float) -> str:
    """Unix time as "2026-11-24 21:00:00 UTC"."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
