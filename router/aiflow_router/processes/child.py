"""A worker as its supervisor sees it: a process, and what it answers on its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from aiflow_router.processes.worker import LISTENING, READY, counted_by, socket_of
from aiflow_router.rpc.steering import Group
from aiflow_sdk.command import tied

READY_WITHIN_S = 60.0
ANSWER_WITHIN_S = 2.0
LEFT_WITHIN_S = 10.0


class ChildError(Exception):
    """A worker did not get ready; the message says how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Who listens at the address: one begins or ends at a time, in the group's order."""

    group: Group = field(default_factory=Group)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(kw_only=True, eq=False)
class Child:
    """A worker that serves.

    Attributes:
        name: of its own, never given again.
        slot: the place among the workers that it fills.
        config: the file it runs by.
        leaving: another one has taken its place.
        heard: its metrics, as it told them last.
    """

    name: str
    slot: int
    config: Path
    process: asyncio.subprocess.Process
    session: aiohttp.ClientSession
    folder: Path
    listening: Listening
    began_s: float
    leaving: bool = False
    heard: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def label(self) -> str:
        """What its process metrics are labelled with: its place, so that there are few."""
        return f"{self.slot}-leaving" if self.leaving else str(self.slot)

    async def ask(self, path: str, *, within_s: float = ANSWER_WITHIN_S) -> bytes | None:
        """What it answers; None where it does not in time."""
        timeout = aiohttp.ClientTimeout(total=within_s)
        try:
            async with self.session.get(f"http://worker{path}", timeout=timeout) as answer:
                return await answer.read() if answer.ok else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def metrics(self) -> str:
        """Its metrics in Prometheus' text, as it told them last where it does not answer now."""
        told = await self.ask("/metrics")
        if told is not None and self.process.returncode is None:  # Else its last word counts.
            self.heard = told.decode()
        return self.heard

    async def leave(self) -> None:
        """Tells it that another one has taken its place; returns when it does not listen."""
        self.leaving = True
        async with self.listening.turn:
            index, of = self.listening.group.place(self.name)
            await self._post(f"/leave/{index}/{of}")
            self.listening.group.left(self.name)

    async def _post(self, path: str) -> None:
        timeout = aiohttp.ClientTimeout(total=LEFT_WITHIN_S)
        try:
            async with self.session.post(f"http://worker{path}", timeout=timeout):
                pass
        except (aiohttp.ClientError, TimeoutError):
            self.signal(signal.SIGTERM)  # One that cannot be talked to drains.

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def wait(self) -> str:
        """How it ended, once it has."""
        code = await self.process.wait()
        self.listening.group.left(self.name)
        with contextlib.suppress(FileNotFoundError):
            self.heard = counted_by(self.folder, self.name).read_text(encoding="utf-8")
            counted_by(self.folder, self.name).unlink()
        socket_of(self.folder, self.name).unlink(missing_ok=True)
        await self.session.close()
        self.ended.set()
        return exit_of(code)


async def started(
    *, folder: Path, listening: Listening, name: str, slot: int, config: Path
) -> Child:
    """A worker that serves. Raises ChildError.

    It is started from the program as it is installed now, and in a session of its own, so that
    Ctrl-C reaches the supervisor alone. Linux ends it when the supervisor dies.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", tied.__file__, str(os.getpid())),
        *(sys.executable, "-P", *_warnings(), "-m", "aiflow_router.processes.worker"),
        *(str(folder), name, str(config)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    serves = False
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            serves = await _serves(process, listening, name)
    except TimeoutError:
        pass
    finally:
        if not serves:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if not serves:
        listening.group.left(name)
        how = exit_of(await process.wait())
        raise ChildError(f"worker {name} ended with {how} before it served; its log says why")
    connector = aiohttp.UnixConnector(str(socket_of(folder, name)))
    return Child(
        name=name,
        slot=slot,
        config=config,
        process=process,
        session=aiohttp.ClientSession(connector=connector),
        folder=folder,
        listening=listening,
        began_s=asyncio.get_running_loop().time(),
    )


async def _serves(process: asyncio.subprocess.Process, listening: Listening, name: str) -> bool:
    """Waits until the worker could serve, and lets it when it is its turn."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None or await stdout.readline() != f"{READY}\n".encode():
        return False
    async with listening.turn:
        listening.group.joined(name)
        with contextlib.suppress(ConnectionError):
            stdin.write(b"listen\n")
            await stdin.drain()
        return await stdout.readline() == f"{LISTENING}\n".encode()


def exit_of(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _warnings() -> list[str]:
    """What this interpreter was told of warnings holds for its workers too."""
    return [f"-W{option}" for option in sys.warnoptions]
