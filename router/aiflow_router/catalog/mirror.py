"""A catalog that another process owns, as it was last told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.publisher import Follower, Publisher
from aiflow_router.catalog.snapshot import Entry, Snapshot


class Mirror:
    """Lives in one event loop. Its last view stays when its source is lost.

    Attributes:
        version: of the source, as far as everybody here follows it.
    """

    def __init__(self) -> None:
        self.version = 0
        self._publisher = Publisher()
        self._loop = asyncio.get_running_loop()
        self._heard_at_s = self._loop.time()
        self._told = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        return self._publisher.snapshot

    def follow(self, follower: Follower) -> None:
        """Calls `follower` with the current snapshot now and with each new one from here on."""
        self._publisher.follow(follower)

    async def settled(self) -> None:
        """Returns when all that was told so far is in the snapshot."""
        await self._publisher.settled()

    def age_s(self) -> float:
        """Seconds since the source last told something."""
        return self._loop.time() - self._heard_at_s

    def close(self) -> None:
        self._publisher.close()

    async def change(
        self,
        entries: Iterable[Entry],
        *,
        removed: Iterable[Key] = (),
        version: int,
        complete: bool = False,
    ) -> None:
        """Takes what is new; `complete` says that `entries` is all there is."""
        self._heard_at_s = self._loop.time()
        known = self.snapshot.entries
        gone = set(known) if complete else set(removed)
        for entry in entries:
            key = entry.endpoint.key
            gone.discard(key)
            # Told again after a loss: that one has not registered again.
            if not (complete and known.get(key) == entry):
                self._publisher.put(entry)
        for key in gone:
            self._publisher.drop(key)
        await self._publisher.settled()
        self.version = version
        self._told.set()
        self._told = asyncio.Event()

    async def reached(self, version: int) -> None:
        """Returns once everybody here follows the source's `version` or a later one."""
        while self.version < version:
            await self._told.wait()
