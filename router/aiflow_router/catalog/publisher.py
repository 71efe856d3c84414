"""From changes of single endpoints to snapshots: gathered, sliced, swapped whole, and told.

The event loop that forwards calls does this work too, so no more than a few milliseconds of it are
done at once: what is asked for together becomes one snapshot where it is little, and a row of them
where it is much.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator

from immutables import Map

from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.names import Names
from aiflow_router.catalog.snapshot import Change, Entry, Snapshot, whole

Follower = Callable[[Snapshot, Change], None]

# The work in one snapshot. A step is one endpoint under one name, some 10 us with all followers:
# 100 of them take 1 ms, a tenth of what the loop may be held, which leaves room for a machine that
# is slower, and for a collection of garbage in the same turn.
SLICE_STEPS = 100
# An endpoint itself is a load, a link and perhaps a question for its methods: as much as 8 names.
ENTRY_STEPS = 8
# What comes within this time of a snapshot is gathered for the next: all followers are called for
# each, also where one endpoint is all that changed.
GATHER_S = 0.002


class Publisher:
    """Owns the current `snapshot`. Lives in one event loop.

    Attributes:
        snapshot: what was published last.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._loop = asyncio.get_running_loop()
        self._followers: list[Follower] = []
        self._wanted: OrderedDict[Key, Entry | None] = OrderedDict()
        self._moving: tuple[Key, Iterator[int]] | None = None
        # Not copied for each snapshot: a collection would walk all that lives in such a copy.
        self._entries: Map[Key, Entry] = Map()
        self._models = Names()
        self._services = Names()
        self._put: dict[Key, Entry] = {}
        self._gone: set[Key] = set()
        self._timer: asyncio.Handle | None = None
        self._not_before_s = 0.0
        self._shown: dict[Key, asyncio.Future[None]] = {}

    def follow(self, follower: Follower) -> None:
        """Calls `follower` with the current snapshot now and with each new one from here on."""
        self._followers.append(follower)
        follower(self.snapshot, whole(self.snapshot))

    def put(self, entry: Entry) -> None:
        """Adds the endpoint, or replaces what is known of it, soon."""
        self._want(entry.endpoint.key, entry)

    def drop(self, key: Key) -> None:
        """Takes the endpoint out soon."""
        self._want(key, None)

    async def shown(self, key: Key) -> None:
        """Returns when all that was asked for `key` so far is in the snapshot."""
        while key in self._wanted or (self._moving is not None and self._moving[0] == key):
            waiting = self._shown.setdefault(key, self._loop.create_future())
            await asyncio.shield(waiting)  # Others may wait for it too.

    async def settled(self) -> None:
        """Returns when there is nothing left to publish."""
        while self._wanted:
            await self.shown(next(reversed(self._wanted)))
        if self._moving is not None:
            await self.shown(self._moving[0])

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _want(self, key: Key, entry: Entry | None) -> None:
        self._wanted[key] = entry
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            return
        if self._not_before_s <= self._loop.time():
            self._timer = self._loop.call_soon(self._slice)
        else:
            self._timer = self._loop.call_at(self._not_before_s, self._slice)

    def _slice(self) -> None:
        """Makes one snapshot, of as much as fits into it."""
        self._timer = None
        began_s = self._loop.time()
        done = self._work()
        try:
            self._publish()
        finally:
            for key in done:
                waiting = self._shown.pop(key, None)
                if waiting is not None:
                    waiting.set_result(None)
            now_s = self._loop.time()
            # At least half of the time is the calls'.
            self._not_before_s = now_s + max(GATHER_S, now_s - began_s)
            if self._wanted or self._moving is not None:
                self._arm()

    def _work(self) -> list[Key]:
        """The keys that are where they were wanted."""
        done: list[Key] = []
        steps = 0
        while steps < SLICE_STEPS:
            if self._moving is None:
                if not self._wanted:
                    break
                key, entry = self._wanted.popitem(last=False)
                self._moving = (key, self._move(key, entry))
            key, moves = self._moving
            for cost in moves:
                steps += cost
                if steps >= SLICE_STEPS:
                    break
            else:
                self._moving = None
                done.append(key)
        return done

    def _move(self, key: Key, after: Entry | None) -> Iterator[int]:
        """Brings `key` from where it is to `after`; yields the cost of what it has just done.

        In this order, so that a snapshot taken in between lists nobody under a name that does not
        serve it: names are left, then the entry changes, then names are joined.
        """
        before = self._entries.get(key)
        yield from self._leave(key, before, after)
        if after is not None:
            self._entries = self._entries.set(key, after)
            self._put[key] = after
            self._gone.discard(key)
        elif before is not None:
            self._entries = self._entries.delete(key)
            self._put.pop(key, None)
            self._gone.add(key)
        yield ENTRY_STEPS
        yield from self._join(key, before, after)

    def _leave(self, key: Key, before: Entry | None, after: Entry | None) -> Iterator[int]:
        for table, old, new in self._kinds(before, after):
            stays = after is not None and after.ready()
            if old == new and (stays or not (before and before.ready())):
                continue
            kept = frozenset(new)
            for name in old:
                if before is not None and before.ready() and not (stays and name in kept):
                    table.leave(name, key)
                if name not in kept:
                    table.release(name)
                yield 1

    def _join(self, key: Key, before: Entry | None, after: Entry | None) -> Iterator[int]:
        for table, old, new in self._kinds(before, after):
            # Who weighs less or more than before joins anew, which tells whoever reckoned with it.
            same = before is not None and after is not None and _weighs(before) == _weighs(after)
            stayed = before is not None and before.ready() and (same or after is None)
            if old == new and (stayed or not (after and after.ready())):
                continue
            had = frozenset(old)
            for name in new:
                if name not in had:
                    table.hold(name)
                if after is not None and after.ready() and not (stayed and name in had):
                    table.join(name, key)
                yield 1

    def _kinds(
        self, before: Entry | None, after: Entry | None
    ) -> tuple[tuple[Names, tuple[str, ...], tuple[str, ...]], ...]:
        """For models and for services: the table, the names before and after."""
        old = before.endpoint if before is not None else None
        new = after.endpoint if after is not None else None
        return (
            (self._models, old.models if old else (), new.models if new else ()),
            (self._services, old.services if old else (), new.services if new else ()),
        )

    def _publish(self) -> None:
        models, services = self._models.publish(), self._services.publish()
        put, self._put = self._put, {}
        gone, self._gone = self._gone, set()
        if not (models or services or put or gone):
            return
        self.snapshot = Snapshot(
            version=self.snapshot.version + 1,
            entries=self._entries,
            models=self._models.served,
            services=self._services.served,
        )
        change = Change(put=put, gone=frozenset(gone), models=models, services=services)
        for follower in self._followers:
            follower(self.snapshot, change)


def _weighs(entry: Entry) -> tuple[int, str]:
    return (entry.endpoint.weight, entry.endpoint.zone)
