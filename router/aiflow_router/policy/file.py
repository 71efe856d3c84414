"""aiflow.yaml as a source of the policy: looked at five times a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiflow_router.config.config import Config
from aiflow_router.config.file import ConfigError, differing
from aiflow_router.policy.edition import Edition, edition
from aiflow_router.policy.policies import Policies

EVERY_S = 0.2

Read = Callable[[], Config]
"""Reads the configuration as it is now, flags and all. Raises ConfigError."""

# What tells a file from the one that was there before: editors write in place or rename.
_Seen = tuple[int, int, int] | None


class File:
    """Puts what the file says in force when that changes.

    A file is read when it looked the same twice in a row, so that none is read half written. One
    that differs in what cannot change while the router runs is refused as a whole: half of a file
    in force would be what nobody wrote.
    """

    def __init__(
        self,
        path: Path,
        read: Read,
        *,
        running: Callable[[], Config],
        policies: Policies,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args: running: the configuration that the router runs by."""
        self._path = path
        self._read = read
        self._running = running
        self._policies = policies
        self._sleep = sleep
        self._wall = wall
        # What the file said when the router began, or said last.
        self._said = policies.current.version
        self._read_as: _Seen = None

    def look_again(self) -> None:
        """Reads the file soon, whether or not it has changed."""
        self._read_as = (0, 0, 0)

    async def run(self) -> None:
        """Until it is cancelled."""
        before: _Seen = None
        while True:
            seen = await asyncio.to_thread(self._look)
            if seen == before and seen != self._read_as:
                self._read_as = seen
                await self._take(gone=seen is None)
            before = seen
            await self._sleep(EVERY_S)

    def _look(self) -> _Seen:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_ino, found.st_size)

    async def _take(self, *, gone: bool) -> None:
        origin = str(self._path)
        if gone:
            self._policies.refuse(
                [f"{origin}: it is gone; write it again"], source="file", origin=origin
            )
            return
        try:
            found = await asyncio.to_thread(self._changed)
        except ConfigError as error:
            self._policies.refuse(error.problems, source="file", origin=origin)
            return
        self._policies.accepted("file")
        if found is not None:
            self._said = found.version
            await self._policies.put(found)

    def _changed(self) -> Edition | None:
        """The policy in the file, None where it is what it was. Raises ConfigError."""
        config = self._read()
        if keys := differing(self._running(), config):
            raise ConfigError(
                [
                    f"{self._path}: {key} cannot change while the router runs: restart it, or with "
                    "2 or more workers send SIGHUP; nothing else in the file is taken until then"
                    for key in keys
                ]
            )
        found = edition(
            config.policy_document(),
            source="file",
            origin=str(self._path),
            since_s=self._wall(),
        )
        return None if found.version == self._said else found
