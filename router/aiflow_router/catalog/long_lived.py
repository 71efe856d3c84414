"""Keeps Python's garbage collector from looking at the catalog again and again.

A full collection walks everything that lives, and 10,000 endpoints with all that is kept of them
hold the event loop for 30 ms. None of it is ever in a cycle, so nothing would be found: as the
catalog grows it is set aside, and collections walk what is young.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from aiflow_router.catalog.snapshot import Change, Snapshot

# Endpoints and names that may be new before they are set aside, some 10 objects each: walking
# these takes 1 ms.
GROWN_BY = 500


class LongLived:
    """For a process that is a router and nothing else: all that it holds is set aside."""

    def __init__(self, *, freeze: Callable[[], None] = gc.freeze) -> None:
        self._freeze = freeze
        self._size = -GROWN_BY

    def follow(self, snapshot: Snapshot, _change: Change) -> None:
        """Only growth beyond what there ever was counts, not that endpoints come and go.

        What is garbage in a cycle at such a moment stays for ever, which must have an end.
        """
        size = len(snapshot.entries) + len(snapshot.models) + len(snapshot.services)
        if size >= self._size + GROWN_BY:
            self._size = size
            self._freeze()
