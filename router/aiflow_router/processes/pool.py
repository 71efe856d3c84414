"""N workers, kept running and replaced without a gap."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from aiflow_router.processes.child import Child, ChildError
from aiflow_sdk.command.processes import Backoff

_log = structlog.get_logger(__name__)

BACKOFF = Backoff(min_s=0.25, max_s=5.0, reset_after_s=10.0)
# A worker that died so often in a row, each time soon after its start, will not be helped by one
# more start.
MAX_CRASHES = 5
# Beside what draining takes by configuration.
END_SPARE_S = 10.0


class Start(Protocol):
    """Starts a worker. Raises ChildError."""

    def __call__(self, *, name: str, slot: int, config: Path) -> Awaitable[Child]: ...


class Ended(Protocol):
    def __call__(self, child: Child, *, died: bool) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """One worker's place; `child` is None between two lives."""

    number: int
    crashes: int = 0
    child: Child | None = None


class Pool:
    """Lives in one event loop.

    Attributes:
        config: the file that new workers run by.
        failed: done, with the reason, when workers die over and over.
    """

    def __init__(
        self,
        *,
        start: Start,
        config: Path,
        ended: Ended,
        rng: random.Random | None = None,
    ) -> None:
        """`ended` is told of each worker that is no more, and whether it died unasked."""
        self.config = config
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._start = start
        self._ended = ended
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._names = itertools.count(1)
        self._slots: list[_Slot] = []
        self._children: set[Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def serving(self) -> list[Child]:
        """The workers that have their place."""
        return [slot.child for slot in self._slots if slot.child is not None]

    def leaving(self) -> list[Child]:
        """Those whose place another one has."""
        return [child for child in self._children if child.leaving]

    def starting(self) -> int:
        """Places without a worker."""
        return sum(slot.child is None for slot in self._slots)

    async def fill(self, count: int) -> None:
        """Starts `count` workers at once. Raises ChildError; then some may run, see `stop`."""
        slots = [_Slot(number=number) for number in range(1, count + 1)]
        children = await asyncio.gather(
            *(self._new(slot.number, self.config) for slot in slots), return_exceptions=True
        )
        for slot, child in zip(slots, children, strict=True):
            if isinstance(child, Child):
                self._slots.append(slot)
                self._place(slot, child)
        for child in children:
            if isinstance(child, BaseException):
                raise child

    async def roll(self, config: Path, *, count: int, begins: Callable[[], None]) -> None:
        """Replaces every worker by one that runs by `config`, one at a time; `count` in the end.

        `begins` is called when the first new one serves, before it takes a place. Returns when
        those that were replaced have ended. Raises ChildError where the first new one does not
        get ready: then everything is as it was.
        """
        first = await self._new(1, config)
        begins()
        self.config = config
        self._slots += [_Slot(number=n) for n in range(len(self._slots) + 1, count + 1)]
        before = list(self._children)
        for slot in self._slots[:count]:
            if slot.number == 1:
                await self._replace(slot, first)
            elif slot.child is None or slot.child.config is not config:
                try:
                    await self._replace(slot, await self._new(slot.number, config))
                except ChildError as error:
                    # The first one could be started, so this is not the configuration's fault.
                    _log.error("a worker was not replaced", worker=slot.number, error=str(error))
                    await self._replace(slot, None)
                    self._run(self._revive(slot))
        for slot in self._slots[count:]:
            await self._replace(slot, None)
        del self._slots[count:]
        await asyncio.gather(*(child.ended.wait() for child in before if child.leaving))

    async def stop(self, *, within_s: float) -> None:
        """Lets all workers drain, in parallel, and returns when none is left."""
        self._stopping = True
        children = list(self._children)
        for child in children:
            child.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s + END_SPARE_S):
                await asyncio.gather(*(child.ended.wait() for child in children))
        except TimeoutError:
            for child in children:
                child.signal(signal.SIGKILL)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    def kill(self) -> None:
        """Ends all workers now."""
        for child in self._children:
            child.signal(signal.SIGKILL)

    async def _new(self, slot: int, config: Path) -> Child:
        child = await self._start(name=str(next(self._names)), slot=slot, config=config)
        self._children.add(child)
        if self._stopping:
            child.signal(signal.SIGTERM)
        return child

    async def _replace(self, slot: _Slot, child: Child | None) -> None:
        old = slot.child
        slot.child = None
        if child is not None:
            self._place(slot, child)
        if old is not None:
            await self._leave(old)

    def _place(self, slot: _Slot, child: Child) -> None:
        slot.child = child
        self._run(self._watch(slot, child))

    async def _watch(self, slot: _Slot, child: Child) -> None:
        """Until the worker ends; then another one takes its place, unless it was asked to end."""
        how = await child.wait()
        self._children.discard(child)
        asked = child.leaving or self._stopping
        self._ended(child, died=not asked)
        if asked:
            _log.info("worker ended", name=child.name, how=how)
            return
        slot.child = None
        ran_s = asyncio.get_running_loop().time() - child.began_s
        slot.crashes = 1 if ran_s > BACKOFF.reset_after_s else slot.crashes + 1
        _log.error("worker died", name=child.name, how=how, ran_s=round(ran_s, 1))
        await self._revive(slot)

    async def _revive(self, slot: _Slot) -> None:
        """Brings a worker back into an empty place, or gives up."""
        while not self._stopping and slot.child is None:
            if slot.crashes >= MAX_CRASHES:
                self._give_up(slot)
                return
            wait_s = BACKOFF.wait_s(max(slot.crashes, 1), draw=self._rng.random)
            _log.warning("worker starts again", worker=slot.number, wait_s=round(wait_s, 2))
            await asyncio.sleep(wait_s)
            if slot.child is None:
                await self._try(slot)

    async def _try(self, slot: _Slot) -> None:
        """Starts a worker for an empty place; takes it back where a reload was faster."""
        config = self.config
        try:
            child = await self._new(slot.number, config)
        except ChildError as error:
            slot.crashes += 1
            _log.error("worker died", how=str(error))
            return
        if slot.child is None and slot in self._slots and config is self.config:
            self._place(slot, child)
        else:  # A reload was faster.
            self._run(self._watch(slot, child))
            await self._leave(child)

    async def _leave(self, old: Child) -> None:
        await old.leave()
        for other in self.serving():
            if await other.ask("/others-left") is not None:
                break

    def _give_up(self, slot: _Slot) -> None:
        if not self.failed.done():
            self.failed.set_result(
                f"worker {slot.number} died {slot.crashes} times in a row, each time within "
                f"{BACKOFF.reset_after_s:g} s of its start: its log says why; when that is "
                "mended, start the router again"
            )

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
