"""`WatchEndpoints`: the catalog, then each change of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.snapshot import Change, Entry, Snapshot
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.rpc.endpoints import STATES, to_proto
from aiflow_router.rpc.visit import Context, Visit
from aiflow_sdk import errors

# An entry costs 10 us, and what it names on top.
ENTRIES_AT_ONCE = 200


def leaving() -> errors.DrainingError:
    return errors.DrainingError(
        "this router is shutting down: watch another one, or this one again shortly",
        retry_after_s=1.0,
    )


class Closing(Protocol):
    """Whoever answers watches; `close` ends them all."""

    def close(self) -> None: ...


class Watchers:
    """Tells all who watch. One that is slow misses no change: it gets several as one."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        self._snapshot = snapshot
        for watcher in self._watchers:
            watcher.news.update(change.put)
            watcher.news.update(dict.fromkeys(change.gone))
            watcher.wake.set()

    def close(self) -> None:
        """Ends every watch: it would hold up a shutdown for ever."""
        self._closed = True
        for watcher in self._watchers:
            watcher.wake.set()

    async def changes(self) -> AsyncIterator[bytes]:
        """Serialized WatchEndpointsResponses. Raises DrainingError when the router leaves."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            snapshot = self._snapshot
            yield await _message(snapshot.entries, version=snapshot.version, complete=True)
            while not self._closed:
                await watcher.wake.wait()
                watcher.wake.clear()
                news, watcher.news = watcher.news, {}
                yield await _message(news, version=self._snapshot.version, complete=False)
        finally:
            self._watchers.discard(watcher)
        raise leaving()

    async def handle(self, _: Visit, context: Context) -> Iterable[Pair]:
        """The work of a public handler; what the request says is not read, for it says nothing."""
        async for change in self.changes():
            await context.write(change)
        return ()


class _Watcher:
    """What one watcher has yet to be told: entries by key, None for those that left."""

    def __init__(self) -> None:
        self.news: dict[Key, Entry | None] = {}
        self.wake = asyncio.Event()


class Relays:
    """The same for a router that follows another process: the owner's words, passed on."""

    def __init__(self, owner: grpc.aio.Channel, method: str) -> None:
        # Raw bytes; the stubs infer Never from the missing serializers.
        self._ask: Any = owner.unary_stream(method)
        self._calls: set[Any] = set()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        for call in self._calls:
            call.cancel()

    async def handle(self, _: Visit, context: Context) -> Iterable[Pair]:
        if self._closed:
            raise leaving()
        call = self._ask(b"")  # A request to watch says nothing.
        self._calls.add(call)
        try:
            while (change := await call.read()) is not grpc.aio.EOF:
                await context.write(change)
        except asyncio.CancelledError:
            if self._closed:
                raise leaving() from None
            raise
        finally:
            self._calls.discard(call)
            call.cancel()
        return ()


async def _message(news: Mapping[Key, Entry | None], *, version: int, complete: bool) -> bytes:
    """Made in slices, between which other calls move on."""
    head = registry_pb2.WatchEndpointsResponse(version=version, complete=complete)
    parts = [head.SerializeToString()]
    items = iter(news.items())
    while slice_ := list(itertools.islice(items, ENTRIES_AT_ONCE)):
        message = registry_pb2.WatchEndpointsResponse()
        for (backend, address), entry in slice_:
            if entry is None:
                message.removed.add(backend=backend, address=address)
            else:
                message.entries.add(endpoint=to_proto(entry.endpoint), state=STATES[entry.state])
        # Serialized messages joined end to end are the message with their lists joined.
        parts.append(message.SerializeToString())
        if len(slice_) == ENTRIES_AT_ONCE:
            await asyncio.sleep(0)
    return b"".join(parts)
