"""Consul as the source of a catalog: one watch of the list of services, and one of each backend.

What Consul says holds, with one exception: where it was away, has lost its state or says nothing,
an endpoint that it does not list any more is no proof that the server is gone. Such an endpoint is
held for `grace_s`, in which servers register again; calls find out for themselves whether it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from aiflow_router.catalog import last_known
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.consul_answer import Instances, backends, instances
from aiflow_router.catalog.consul_watch import Asking, Book, Pace, Watch
from aiflow_router.catalog.endpoint import Key
from aiflow_router.catalog.snapshot import Entry
from aiflow_sdk.consul import DEFAULT_ADDRESS, Consul, segment

_log = structlog.get_logger(__name__)

LIST_PATH = "/v1/catalog/services"
# Where Consul neither answers nor fails, so long a router waits before it starts from disk.
FIRST_VIEW_WITHIN_S = 3.0
# Changes of this time become one file.
SAVE_AFTER_S = 1.0
# Lines of the log about what changed.
LOGGED_PER_S, LOGGED_BURST = 5.0, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where Consul is and how it is asked; see `aiflow_sdk.consul.Consul`.

    Attributes:
        last_known: file of the last view; None where there is none.
        wait_s: how long Consul may let a question wait.
        grace_s: how long an endpoint is held that is missing after trouble.
        max_connections: questions that wait at once.
    """

    address: str = DEFAULT_ADDRESS
    token_file: str | None = None
    datacenter: str = ""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    last_known: str | None = None
    wait_s: float = 10.0
    grace_s: float = 60.0
    max_connections: int = 128

    def client(self) -> Consul:
        """Raises ConsulRefusedError where files for TLS cannot be used."""
        return Consul(
            self.address,
            token_file=self.token_file,
            datacenter=self.datacenter,
            ca=self.ca,
            cert=self.cert,
            key=self.key,
        )

    def name(self) -> str:
        """Of the source, for people."""
        return f"{self.address}{f' ({self.datacenter})' if self.datacenter else ''}"


@asynccontextmanager
async def discovering(settings: Settings, catalog: Catalog) -> AsyncIterator[Discovery]:
    """Feeds `catalog` until the block ends; begins when there is a first view, or none to be had.

    Raises ConsulRefusedError where files for TLS cannot be used.
    """
    async with settings.client() as client:
        discovery = Discovery(settings, client, catalog)
        try:
            await discovery.begin()
            yield discovery
        finally:
            await discovery.close()


class Discovery:
    """Lives in one event loop.

    Attributes:
        book: what became of the questions.
        from_disk: whether the view is, or began as, the last one of an earlier run, and Consul has
            not told all of it yet.
    """

    def __init__(self, settings: Settings, client: Consul, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._loop = asyncio.get_running_loop()
        self.book = Book(clock=self._loop.time, heard=catalog.heard, not_heard=self._not_heard)
        self.from_disk = False
        self._asking = Asking(
            consul=client,
            book=self.book,
            wait_s=settings.wait_s,
            connections=settings.max_connections,
            # One is for the list.
            turns=asyncio.Semaphore(settings.max_connections - 1),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        # As Consul or the file told it, by backend; what is held is in `_held` only.
        self._view: dict[str, Instances] = {}
        self._held: dict[Key, tuple[Entry, asyncio.TimerHandle]] = {}
        # Backends that have not answered since they were listed; None before the first list.
        self._unanswered: set[str] | None = None
        self._first = asyncio.Event()
        self._changed = asyncio.Event()
        self._lines = Pace(per_s=LOGGED_PER_S, burst=LOGGED_BURST)

    @property
    def held(self) -> int:
        """Endpoints that Consul does not list any more and that may still live."""
        return len(self._held)

    @property
    def known(self) -> bool:
        """Whether there is a view, be it an old one."""
        return self._complete() or self.from_disk

    def report(self) -> dict[str, Any]:
        """For `/readyz`."""
        return {
            "source": f"consul {self._settings.name()}",
            "age_s": round(self._catalog.age_s(), 1),
            "from_disk": self.from_disk,
            "watches": self.book.watches,
            "held": self.held,
            **({"failing": self.book.failing} if self.book.failing else {}),
        }

    async def begin(self) -> None:
        """Returns when there is a view, or when Consul fails and there was none to begin with."""
        watch = Watch(self._asking, LIST_PATH, self._take_list, turns=asyncio.Semaphore())
        self._run(watch.run())
        self.book.watches += 1
        try:
            async with asyncio.timeout(FIRST_VIEW_WITHIN_S):
                await self._first.wait()
        except TimeoutError:
            _log.warning("Consul has not told all endpoints yet", within_s=FIRST_VIEW_WITHIN_S)
        if not self._complete():
            self._load()
        if self._settings.last_known is not None:
            self._run(self._saves(Path(self._settings.last_known)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        for _, timer in self._held.values():
            timer.cancel()
        if self._settings.last_known is not None and self._changed.is_set():
            await self._save(Path(self._settings.last_known))

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a watch of Consul ended, which it never should", exc_info=error)

    def _not_heard(self) -> None:
        """Ends the wait for a first view where not even the list is to be had."""
        if self._unanswered is None:
            self._first.set()

    def _complete(self) -> bool:
        return self._unanswered is not None and not self._unanswered

    def _take_list(self, body: Any) -> None:
        listed = backends(body)
        before = set(self._watches)
        if self._unanswered is None:
            self._unanswered = set()
        for name in listed - before:
            self._unanswered.add(name)
            watch = Watch(
                self._asking,
                f"/v1/health/service/{segment(name)}",
                partial(self._take_backend, name),
            )
            self._watches[name] = self._run(watch.run())
        for name in before - listed:
            self._watches.pop(name).cancel()
        self.book.watches = 1 + len(self._watches)
        self._unanswered &= listed
        for name in (before | set(self._view)) - listed:
            gone = self._view.pop(name, Instances())
            self._missing(name, gone.entries)
        self._look_complete()

    def _take_backend(self, name: str, body: Any) -> None:
        before = self._view.get(name, Instances())
        now = instances(body, parsed=before.parsed)
        for instance, why in now.problems.items():
            if before.problems.get(instance) != why:
                self.book.errors["entry"] += 1
                _log.warning("an instance in Consul is left out", instance=instance, why=why)
        self._view[name] = now
        changed = [
            entry
            for key, entry in now.entries.items()
            if before.entries.get(key) != entry or key in self._held
        ]
        for entry in changed:
            self._release(entry.endpoint.key)
            self._catalog.found(entry)
        if changed:
            self._say("endpoints found", name, changed)
            self._changed.set()
        self._missing(
            name, {key: entry for key, entry in before.entries.items() if key not in now.entries}
        )
        if self._unanswered is not None:
            self._unanswered.discard(name)
        self._look_complete()

    def _look_complete(self) -> None:
        if not self._complete():
            return
        if self.from_disk:
            self.from_disk = False
            _log.info("Consul has told all endpoints: the view is from disk no more")
            self._changed.set()
        if not self._first.is_set():
            self._first.set()
            self._changed.set()

    def _missing(self, name: str, gone: Mapping[Key, Entry]) -> None:
        """Takes away what is listed no more, or holds it where that may be Consul's fault."""
        if not gone:
            return
        doubt = self._loop.time() < self.book.doubted_at_s + self._settings.grace_s
        # Who was leaving anyway, or was not fit, is no loss.
        held = [entry for entry in gone.values() if doubt and entry.ready()]
        for entry in held:
            key = entry.endpoint.key
            self._release(key)
            timer = self._loop.call_later(self._settings.grace_s, self._give_up, key)
            self._held[key] = (entry, timer)
        left = [entry for key, entry in gone.items() if key not in self._held]
        for entry in left:
            self._catalog.lost(entry.endpoint.key)
        if held:
            self._say("endpoints held: Consul had trouble and lists them no more", name, held)
        if left:
            self._say("endpoints left", name, left)
        self._changed.set()

    def _give_up(self, key: Key) -> None:
        entry, _ = self._held.pop(key)
        self._catalog.lost(key)
        self._changed.set()
        self._say("endpoints did not come back to Consul", key[0], [entry])

    def _release(self, key: Key) -> None:
        if (held := self._held.pop(key, None)) is not None:
            held[1].cancel()

    def _say(self, event: str, backend: str, entries: Iterable[Entry]) -> None:
        """A line in the log, unless there are very many: then nobody would read them."""
        now_s = self._loop.time()
        if self._lines.wait_s(now_s):
            return
        self._lines.take(now_s)
        shown = [f"{entry.endpoint.address} {entry.state.name.lower()}" for entry in entries]
        more = len(shown) - 10
        _log.info(
            event,
            backend=backend,
            endpoints=shown if more <= 0 else [*shown[:10], f"... and {more} more"],
        )

    def _entries(self) -> list[Entry]:
        """All that the catalog has of Consul."""
        told = [entry for view in self._view.values() for entry in view.entries.values()]
        return told + [entry for entry, _ in self._held.values()]

    def _load(self) -> None:
        """Begins with the last view of an earlier run, as far as Consul has said nothing."""
        path = self._settings.last_known
        if path is None:
            _log.error(
                "Consul fails and there is no last view: name a file in "
                "discovery.consul.last_known for the next time",
                error=self.book.failing,
            )
            return
        try:
            entries, saved_at_s = last_known.load(Path(path), source=self._settings.name())
        except last_known.LastKnownError as error:
            self.book.errors["last_known"] += 1
            _log.error("Consul fails and there is no last view", why=str(error))
            return
        answered = set(self._view)
        views: dict[str, dict[Key, Entry]] = {}
        for entry in entries:
            if entry.endpoint.backend not in answered:
                views.setdefault(entry.endpoint.backend, {})[entry.endpoint.key] = entry
                self._catalog.found(entry)
        for backend, view in views.items():
            self._view[backend] = Instances(entries=view)
        self.from_disk = True
        _log.warning(
            "started from the last view on disk, because Consul does not answer",
            file=path,
            age_s=round(time.time() - saved_at_s),
            endpoints=len(entries),
            error=self.book.failing,
        )

    async def _saves(self, path: Path) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(SAVE_AFTER_S)
            await self._save(path)

    async def _save(self, path: Path) -> None:
        self._changed.clear()
        if not self._complete():
            return
        try:
            await asyncio.to_thread(
                last_known.save, path, self._entries(), source=self._settings.name()
            )
        except last_known.LastKnownError as error:
            self.book.errors["last_known"] += 1
            _log.error("the last view is not on disk", why=str(error))
