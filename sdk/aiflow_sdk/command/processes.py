"""Keeps a set of child processes running: starts, restarts, stops, leaves none behind.

One thread owns every child, because Linux sends a child the signal of its parent's death when the
thread that started it ends. Children get process groups of their own, so that Ctrl-C reaches the
supervisor alone, which stops them in order.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TIED = str(Path(__file__).with_name("tied.py"))
_LINE_LIMIT = 1024 * 1024
_LAST_WORDS_S = 2.0
_LOOK_S = 0.05
_SIGNALS_S = 0.2

Say = Callable[[str, str], None]
"""Takes a part's name and a line it wrote, or a line about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One child process. It prints a line of JSON with "event": "listening" when it is ready."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    ready_s: float = 60.0
    """How long it may take to get ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between restarts: doubling, drawn from the upper half, short again after a long run."""

    min_s: float = 0.5
    max_s: float = 10.0
    reset_after_s: float = 30.0

    def wait_s(self, crashes: int, *, draw: Callable[[], float] = random.random) -> float:
        bound_s = min(self.max_s, self.min_s * 2.0 ** min(crashes - 1, 30))
        return bound_s * (0.5 + draw() / 2)


class StartError(Exception):
    """A part did not get ready; the message says which, and its last words."""


class Supervisor:
    """Runs parts in the background until closed.

    Args:
        say: called from the supervisor's thread for each line.
        stop_s: what a part gets to end by itself before it is killed.
        backoff: between restarts of a part that was ready once.
    """

    def __init__(self, *, say: Say, stop_s: float = 10.0, backoff: Backoff | None = None) -> None:
        self._say = say
        self._stop_s = stop_s
        self._backoff = backoff or Backoff()
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="aiflow-supervisor", daemon=True)
        self._thread.start()

    def start(self, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
        """Starts parts at the same time; returns what each said when it was ready, by name.

        Raises:
            StartError: one ended or took too long; the others go on until `close`.
        """
        ready: dict[str, Future[dict[str, Any]]] = {part.name: Future() for part in parts}
        for part in parts:
            self._loop.call_soon_threadsafe(self._launch, part, ready[part.name])
        deadlines = {part.name: time.monotonic() + part.ready_s for part in parts}
        said: dict[str, dict[str, Any]] = {}
        while len(said) < len(parts):
            # In short turns over all of them, so that the first failure ends the wait.
            for part in parts:
                if part.name in said:
                    continue
                try:
                    said[part.name] = ready[part.name].result(timeout=0.05)
                except TimeoutError:
                    if time.monotonic() > deadlines[part.name]:
                        raise StartError(
                            f"{part.name} was not ready within {part.ready_s:g} s"
                        ) from None
        return said

    def pids(self) -> dict[str, int]:
        """The process of each part that runs now."""
        return {name: process.pid for name, process in list(self._running.items())}

    def close(self) -> None:
        """Stops every part, last started first, and waits for it; may be repeated."""
        if self._thread.is_alive():
            stopped = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
            # A second signal may be given to another thread: this one has to wake to see it.
            while wait((stopped,), timeout=_SIGNALS_S).not_done:
                continue
            stopped.result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def kill(self) -> None:
        """Kills every part now."""
        self._stopping.set()
        for pid in self.pids().values():
            _kill_group(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _launch(self, part: Part, ready: Future[dict[str, Any]]) -> None:
        self._keepers[part.name] = self._loop.create_task(self._keep(part, ready))

    async def _keep(self, part: Part, ready: Future[dict[str, Any]]) -> None:
        crashes = 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                code, last_words = await self._run_once(part, ready)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
                code, last_words = 1, f"cannot be started: {error}"
            if self._stopping.is_set():
                break
            if not ready.done():
                ready.set_exception(
                    StartError(f"{part.name} ended with {_exit(code)}: {last_words or 'no word'}")
                )
                return
            ran_s = time.monotonic() - started_s
            crashes = 1 if ran_s > self._backoff.reset_after_s else crashes + 1
            wait_s = self._backoff.wait_s(crashes)
            self._say(part.name, f"ended with {_exit(code)}; starting it again in {wait_s:.1f} s")
            await asyncio.sleep(wait_s)
        if not ready.done():
            ready.set_exception(StartError(f"{part.name} was stopped while it started"))

    async def _run_once(self, part: Part, ready: Future[dict[str, Any]]) -> tuple[int, str]:
        """Runs the part to its end; returns exit code and last line."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _TIED, str(os.getpid()), *part.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **part.environment},
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        self._running[part.name] = process
        tail: collections.deque[str] = collections.deque(maxlen=1)

        def take(line: str, *, may_be_ready: bool) -> None:
            said = _listening(line) if may_be_ready else None
            if said is None:
                tail.append(line)
                self._say(part.name, line)
            elif not ready.done():
                ready.set_result(said)
            else:
                self._say(part.name, "is ready again")

        readers = [
            asyncio.create_task(_read(process.stdout, lambda line: take(line, may_be_ready=True))),
            asyncio.create_task(_read(process.stderr, lambda line: take(line, may_be_ready=False))),
        ]
        try:
            # Not `process.wait()`: it also waits for the pipes, which grandchildren hold open.
            while process.returncode is None:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(_LOOK_S)
        finally:
            # What the part itself started goes too; it would also hold the pipes open.
            _kill_group(process.pid)
            self._running.pop(part.name, None)
        # A process that left the group may hold a pipe open for ever.
        _, late = await asyncio.wait(readers, timeout=_LAST_WORDS_S)
        for reader in late:
            reader.cancel()
        return process.returncode, tail[-1] if tail else ""

    async def _stop(self) -> None:
        self._stopping.set()
        for name in reversed(list(self._keepers)):
            keeper = self._keepers[name]
            process = self._running.get(name)
            if process is None:
                keeper.cancel()  # between two runs
            else:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await asyncio.wait([keeper], timeout=self._stop_s)
                if not keeper.done():
                    self._say(name, f"did not end within {self._stop_s:g} s; killing it")
                    _kill_group(process.pid)
            await asyncio.gather(keeper, return_exceptions=True)


async def _read(stream: asyncio.StreamReader | None, take: Callable[[str], None]) -> None:
    while stream is not None:
        try:
            line = await stream.readline()
        except ValueError:
            line = b"(a line of more than 1 MiB is left out)\n"
        if not line:
            return
        take(line.decode(errors="replace").rstrip())


def _listening(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and said.get("event") == "listening" else None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
