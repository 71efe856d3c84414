"""Worker processes, so that the event loop never computes.

A job is a call of a picklable top-level function. At most one runs in a worker at a time; others
wait their turn in a bounded queue, first come, first served. Cancelling the await (the caller
hung up, its deadline passed) takes a waiting job out of the queue, and kills the worker of a
running one: a computation cannot be stopped in any other way, and a replacement is there shortly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import structlog

from aiflow_sdk import errors
from aiflow_servers.runtime import _worker

P = ParamSpec("P")
T = TypeVar("T")

_START_TIMEOUT_S = 60.0
_MAX_RESTART_PAUSE_S = 5.0

_log = structlog.get_logger(__name__)


def default_size() -> int:
    """One worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A fixed number of worker processes and the queue before them.

    Args:
        size: number of processes; one per core by default.
        max_queue: jobs that may wait; one more is refused with OverloadedError.
        modules: names of the modules that hold the jobs, imported before the first job comes.
        initialize: picklable top-level function that each process calls after that, to load what
            its jobs need.
        recycle_after_jobs: a process is replaced, between jobs, after this many of them, against
            memory that libraries lose; 0 for never.
        observe_wait: told the seconds that each started job has waited.
    """

    def __init__(
        self,
        *,
        size: int | None = None,
        max_queue: int = 64,
        modules: Sequence[str] = (),
        initialize: Callable[[], object] | None = None,
        recycle_after_jobs: int = 0,
        observe_wait: Callable[[float], object] = lambda _seconds: None,
    ) -> None:
        self.size = default_size() if size is None else size
        if self.size < 1:
            raise ValueError(f"{size} workers cannot do anything; start at least 1")
        self.max_queue = max_queue
        self._modules = modules
        self._initialize = initialize
        self._recycle_after_jobs = recycle_after_jobs
        self._observe_wait = observe_wait
        self._context = _worker.context(modules)
        # One thread waits at each pipe, one pickles the next job.
        self._threads = ThreadPoolExecutor(2 * self.size, thread_name_prefix="workers")
        self._all: set[_worker.Worker] = set()
        self._idle: list[_worker.Worker] = []
        self._waiting: deque[asyncio.Future[_worker.Worker]] = deque()
        self._calls: set[asyncio.Future[tuple[bool, Any]]] = set()
        # Never cancelled, so that no process is lost between its start and its end.
        self._chores: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._started = False
        self._broken = False  # the last start of a process failed
        self._mean_job_s = 0.1
        self.restarts: dict[str, int] = {"cancelled": 0, "died": 0, "recycled": 0}

    async def start(self) -> None:
        """Starts every process and returns when all are ready for work.

        Raises:
            WorkerStartError: a process could not be made ready; the text says why.
        """
        starting = [self._chore(self._start_one()) for _ in range(self.size)]
        await asyncio.shield(asyncio.gather(*starting))
        self._started = True

    async def close(self) -> None:
        """Ends every process at once; jobs that still run or wait fail."""
        self._closing.set()
        for place in self._waiting:
            if not place.done():
                place.set_exception(_shutting_down())
        for worker in self._all:
            worker.kill()
        await asyncio.gather(*self._calls, *self._chores, return_exceptions=True)
        await asyncio.gather(*(self._end(worker) for worker in list(self._all)))
        self._idle.clear()
        self._threads.shutdown()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def ready(self) -> bool:
        """Whether a job would find a process, now or when its turn comes."""
        alive = bool(self._idle or self._calls) or not self._broken
        return self._started and alive and not self._closing.is_set()

    @property
    def busy(self) -> int:
        """Processes that run a job now."""
        return len(self._calls)

    @property
    def queued(self) -> int:
        """Jobs that wait for a process."""
        return len(self._waiting)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._all]

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in a worker process and returns what it returns.

        Raises:
            OverloadedError: too many jobs wait already.
            UnavailableError: the process died (reason WORKER_DIED), or the server is closing.
            Exception: whatever `function` raised; the worker's traceback is in its notes.
        """
        while True:
            worker = await self._take()
            try:
                fine, value = await self._call(worker, function, args, kwargs)
            except _worker.NotStartedError:
                continue  # it had died idle; any other will do
            if fine:
                result: T = value
                return result
            raise value

    async def _call(
        self, worker: _worker.Worker, function: Callable[..., T], *arguments: Any
    ) -> tuple[bool, Any]:
        loop = asyncio.get_running_loop()
        try:
            # In a thread, for the arguments may be large.
            payload = await loop.run_in_executor(
                self._threads, pickle.dumps, (function, *arguments), pickle.HIGHEST_PROTOCOL
            )
        except BaseException:
            self._release(worker)
            raise
        started = time.monotonic()
        call = loop.run_in_executor(self._threads, worker.call, payload)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            outcome = await asyncio.shield(call)
        except asyncio.CancelledError:
            self._replace(worker, "cancelled", call)
            raise
        except _worker.WorkerDiedError as error:
            self._replace(worker, "died", call)
            raise errors.UnavailableError(
                f"the worker process that ran {function.__name__} died: {error}",
                reason="WORKER_DIED",
                retry_after_s=0.1,
            ) from error
        except BaseException:
            # Dead before it began, or its answer cannot be understood.
            self._replace(worker, "died", call)
            raise
        self._mean_job_s += 0.1 * (time.monotonic() - started - self._mean_job_s)
        if self._recycle_after_jobs and worker.jobs >= self._recycle_after_jobs:
            self._replace(worker, "recycled", call)
        else:
            self._release(worker)
        return outcome

    async def _take(self) -> _worker.Worker:
        if self._closing.is_set():
            raise _shutting_down()
        if self._idle:
            self._observe_wait(0.0)
            return self._idle.pop()
        if len(self._waiting) >= self.max_queue:
            drained_s = self._mean_job_s * len(self._waiting) / self.size
            raise errors.OverloadedError(
                f"{len(self._waiting)} jobs wait for {self.size} worker processes already;"
                " try again later, or start more servers",
                retry_after_s=min(max(drained_s, 0.1), 30.0),
            )
        place: asyncio.Future[_worker.Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        since = time.monotonic()
        try:
            worker = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._release(place.result())  # given a worker and cancelled in the same moment
            elif place in self._waiting:
                self._waiting.remove(place)
            raise
        self._observe_wait(time.monotonic() - since)
        return worker

    def _release(self, worker: _worker.Worker) -> None:
        """Hands a worker that is ready to the job that has waited longest."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(worker)
                return
        self._idle.append(worker)

    def _idle_died(self, worker: _worker.Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            self._replace(worker, "died")

    def _replace(
        self, worker: _worker.Worker, cause: str, *calls: asyncio.Future[tuple[bool, Any]]
    ) -> None:
        self.restarts[cause] += 1
        asyncio.get_running_loop().remove_reader(worker.sentinel)
        worker.kill()
        if not self._closing.is_set():
            self._chore(self._restart(worker, calls))

    async def _restart(
        self, worker: _worker.Worker, calls: Sequence[asyncio.Future[tuple[bool, Any]]]
    ) -> None:
        await asyncio.gather(*calls, return_exceptions=True)  # a thread may still be at its pipe
        await self._end(worker)
        failures = 0
        while not self._closing.is_set():
            try:
                await self._start_one()
            except _worker.WorkerStartError as error:
                if self._closing.is_set():
                    return
                failures += 1
                pause_s = min(_MAX_RESTART_PAUSE_S, 0.1 * 2**failures)
                _log.error("worker_start_failed", failures=failures, problem=str(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause_s)
            else:
                return

    async def _start_one(self) -> None:
        worker = await asyncio.to_thread(
            _worker.Worker, self._context, self._modules, self._initialize
        )
        self._all.add(worker)
        if self._closing.is_set():
            worker.kill()
        try:
            await asyncio.to_thread(worker.wait_ready, _START_TIMEOUT_S)
        except _worker.WorkerStartError:
            self._broken = True
            worker.kill()
            await self._end(worker)
            raise
        self._broken = False
        asyncio.get_running_loop().add_reader(worker.sentinel, self._idle_died, worker)
        self._release(worker)

    async def _end(self, worker: _worker.Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.sentinel)
        await asyncio.to_thread(worker.join)
        worker.close()
        self._all.discard(worker)

    def _chore(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        chore = asyncio.create_task(work, name="workers")
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return chore


def _shutting_down() -> errors.DrainingError:
    return errors.DrainingError("this server is shutting down", retry_after_s=0.1)
