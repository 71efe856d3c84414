"""Consul as the source of a catalog: one watch of the list of services, and one of each backend.

What Consul says holds, with one exception: after it was away or lost its state, bad news of an
endpoint that took calls (it is not listed any more, or its checks fail) may be about Consul and not
about the server: servers have to register again, and checks that nobody could renew have failed.
Such an endpoint is held for `grace_s`; calls find out for themselves whether it lives.
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
from aiflow_router.catalog.endpoint import Key, State
from aiflow_router.catalog.snapshot import Entry
from aiflow_router.tasks import whole
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


def doubtful(shown: Entry | None, told: Entry | None) -> bool:
    """Whether it may be Consul's own trouble that speaks: bad news of who takes calls.

    Who is in maintenance said so itself.
    """
    if shown is None or not shown.ready():
        return False
    return told is None or told.state in (State.UNHEALTHY, State.UNREACHABLE)


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
        self.book = Book(clock=self._loop.time, not_heard=self._not_heard)
        catalog.aged_by(self.book.age_s)
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
        # As Consul or the file told it, by backend; and what is shown instead while in doubt.
        self._view: dict[str, Instances] = {}
        self._held: dict[Key, tuple[Entry, asyncio.TimerHandle]] = {}
        # Backends that have not answered since they were listed; None before the first list.
        self._unanswered: set[str] | None = None
        # Whether Consul ever told everything; and whether the start need not wait any longer.
        self._told = False
        self._begun = asyncio.Event()
        self._changed = asyncio.Event()
        self._lines = Pace(per_s=LOGGED_PER_S, burst=LOGGED_BURST)

    @property
    def held(self) -> int:
        """Endpoints that are called though Consul tells bad news of them, which is in doubt."""
        return len(self._held)

    @property
    def known(self) -> bool:
        """Whether there is a view, be it an old one."""
        return self._told or self.from_disk

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
        self.book.begins(LIST_PATH)
        self._run(watch.run())
        try:
            async with asyncio.timeout(FIRST_VIEW_WITHIN_S):
                await self._begun.wait()
        except TimeoutError:
            _log.warning("Consul has not told all endpoints yet", within_s=FIRST_VIEW_WITHIN_S)
        if not self._told:
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
            self._begun.set()

    def _take_list(self, body: Any) -> None:
        listed = backends(body)
        before = set(self._watches)
        if self._unanswered is None:
            self._unanswered = set()
        for name in listed - before:
            self._unanswered.add(name)
            self.book.begins(_path(name))
            watch = Watch(self._asking, _path(name), partial(self._take_backend, name))
            self._watches[name] = self._run(watch.run())
        for name in before - listed:
            self._watches.pop(name).cancel()
            self.book.ends(_path(name))
        self._unanswered &= listed
        for name in (before | set(self._view)) - listed:
            gone = self._view.pop(name, Instances())
            self._show(name, gone.entries, {})
        self._look_complete()

    def _take_backend(self, name: str, body: Any) -> None:
        # Without rights there is none to see; if really all have left, the list says so too.
        if body:
            self._take_instances(name, body)
        if self._unanswered is not None:
            self._unanswered.discard(name)
        self._look_complete()

    def _take_instances(self, name: str, body: Any) -> None:
        before = self._view.get(name, Instances())
        now = instances(body, parsed=before.parsed)
        for instance, why in now.problems.items():
            if before.problems.get(instance) != why:
                self.book.errors["entry"] += 1
                _log.warning("an instance in Consul is left out", instance=instance, why=why)
        self._view[name] = now
        self._show(name, before.entries, now.entries)

    def _look_complete(self) -> None:
        if self._told or self._unanswered:
            return
        self._told = True
        self._begun.set()
        self._changed.set()
        if self.from_disk:
            self.from_disk = False
            _log.info("Consul has told all endpoints: the view is from disk no more")

    def _show(self, backend: str, before: Mapping[Key, Entry], told: Mapping[Key, Entry]) -> None:
        """Brings the catalog from what was told before to what is told now."""
        doubt = self.book.in_doubt(self._settings.grace_s)
        found, left, held = [], [], []
        for key in {**before, **told}:
            now = told.get(key)
            shown = self._held[key][0] if key in self._held else before.get(key)
            if doubt and doubtful(shown, now):
                assert shown is not None  # noqa: S101 - else there is no doubt
                if key not in self._held:
                    timer = self._loop.call_later(self._settings.grace_s, self._give_up, key)
                    self._held[key] = (shown, timer)
                    held.append(shown)
                continue
            self._release(key)
            if now is not None and now != shown:
                self._catalog.found(now)
                found.append(now)
            elif now is None and shown is not None:
                self._catalog.lost(key)
                left.append(shown)
        for event, entries in (
            ("endpoints found in Consul", found),
            ("endpoints left Consul", left),
            ("endpoints held: Consul had trouble and now tells bad news of them", held),
        ):
            if entries:
                self._changed.set()
                self._say(event, backend, entries)

    def _give_up(self, key: Key) -> None:
        """What was in doubt for so long is true."""
        entry, _ = self._held.pop(key)
        told = self._view.get(key[0], Instances()).entries.get(key)
        if told is None:
            self._catalog.lost(key)
        else:
            self._catalog.found(told)
        self._changed.set()
        self._say("endpoints are held no more, for the news of them stays bad", key[0], [entry])

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
        entries: dict[Key, Entry] = {}
        for view in self._view.values():
            entries.update(view.entries)
        entries.update((key, entry) for key, (entry, _) in self._held.items())
        return list(entries.values())

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
        views: dict[str, dict[Key, Entry]] = {}
        for entry in entries:
            if self._unanswered is None or entry.endpoint.backend in self._unanswered:
                views.setdefault(entry.endpoint.backend, {})[entry.endpoint.key] = entry
                self._catalog.found(entry)
        for backend, view in views.items():
            self._view[backend] = Instances(entries=view)
        self.from_disk = True
        ago_s = max(0.0, time.time() - saved_at_s)
        self.book.begins(LIST_PATH, ago_s=ago_s)
        _log.warning(
            "started from the last view on disk, because Consul does not answer",
            file=path,
            age_s=round(ago_s),
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
        if not self._told:  # What is on disk is no older than what is known here.
            return
        try:
            # Its thread cannot be stopped, and `close` may save too: two at once share a file.
            await whole(
                asyncio.to_thread(
                    last_known.save, path, self._entries(), source=self._settings.name()
                )
            )
        except last_known.LastKnownError as error:
            self.book.errors["last_known"] += 1
            _log.error("the last view is not on disk", why=str(error))


def _path(backend: str) -> str:
    return f"/v1/health/service/{segment(backend)}"
