"""What the rest of the router reads of a catalog, wherever that comes from."""

from __future__ import annotations

from typing import Protocol

from aiflow_router.catalog.snapshot import Snapshot


class View(Protocol):
    """A catalog as its readers see it: this process's own, or a mirror of another's."""

    @property
    def snapshot(self) -> Snapshot: ...

    def age_s(self) -> float:
        """Seconds since its source was last heard of."""
