"""Keeps collections of garbage short.

A full collection walks everything that lives: 10,000 endpoints with their channels hold the event
loop for 50 ms, time and again, and nothing of them is ever found to be garbage. So whatever lives
on after a collection that took long is set aside, and later ones walk what has come since; and
they come sooner, before that is much.

Python counts what is made less what is let go of. A change of the catalog replaces what it makes
anew, so that 12,000 young objects came to 700 by that count, and the next collection of any kind
took 5 to 10 ms: so one is asked for after so many changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiflow_router.catalog.publisher import Follower
from aiflow_router.catalog.snapshot import Change, Snapshot

# Some 5,000 objects. What is set aside is never found to be garbage in a cycle later, and some
# calls in flight are among it: this is so rare that they do not add up.
LONG_S = 0.001

# Python's own are 700, 10, 10, by which 77,000 objects may come between two full collections: with
# these it is 5,600, which take some 3 ms. Only what is made and not soon let go of counts.
THRESHOLDS = (700, 3, 1)

# Endpoints and names: each makes some 12 objects anew, so this is 2,500 of them, or 1 to 2 ms.
CHANGES = 200


class _Watch:
    def __init__(self, *, clock: Callable[[], float], freeze: Callable[[], None]) -> None:
        self._clock = clock
        self._freeze = freeze
        self._began_s = 0.0
        self._changes = 0

    def changed(self, _: Snapshot, change: Change) -> None:
        """Follows a catalog."""
        self._changes += sum(map(len, (change.put, change.gone, change.models, change.services)))
        if self._changes >= CHANGES:
            self._changes = 0
            # In a turn of its own: this one has had the change to do.
            asyncio.get_running_loop().call_soon(gc.collect)

    def __call__(self, phase: str, info: Mapping[str, Any]) -> None:
        """One of `gc.callbacks`."""
        if info["generation"] < 2:
            return
        if phase == "start":
            self._began_s = self._clock()
        elif self._clock() - self._began_s >= LONG_S:
            self._freeze()


@contextlib.contextmanager
def kept_short(
    follow: Callable[[Follower], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
    freeze: Callable[[], None] = gc.freeze,
) -> Iterator[None]:
    """Sets aside what lives now, and what more there will be until the block ends.

    For a process that is a router and nothing else, `follow` is its catalog's.
    """
    watch = _Watch(clock=clock, freeze=freeze)
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    gc.collect()
    freeze()
    gc.collect()  # The next full one comes when a quarter of what this one found is new.
    gc.callbacks.append(watch)
    follow(watch.changed)
    try:
        yield
    finally:
        gc.callbacks.remove(watch)
        gc.set_threshold(*before)
