"""The policy in force, those before it, and what was refused."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from aiflow_router.policy.edition import Edition, Source
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

# Enough for a day of changes; of a thousand routes one has some 200 KB of text.
KEPT = 20

Put = Callable[[Edition], Awaitable[None]]
"""Puts an edition in force somewhere; returns when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A policy that was not taken.

    Attributes:
        at_s: Unix time.
        problems: with file, line and column where there is one.
    """

    source: Source
    origin: str
    at_s: float
    problems: Sequence[str]


class Policies:
    """Lives in one event loop. The latest change wins, wherever it comes from.

    Attributes:
        current: the edition in force.
        number: grows with each change.
        history: the newest first; each version once, the one in force first of all.
        refusal: what was refused last, while nothing from there was accepted since.
    """

    def __init__(
        self,
        first: Edition,
        *,
        number: int = 1,
        refused: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`refused` is called for each policy that is refused, to count it."""
        self.current = first
        self.number = number
        self.history: deque[Edition] = deque((first,), maxlen=KEPT)
        self.refusal: Refusal | None = None
        self._count = refused
        self._wall = wall
        self._followers: list[Put] = []
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def follow(self, put: Put) -> None:
        """Calls `put` with each edition that comes into force from here on."""
        self._followers.append(put)

    async def put(
        self, found: Edition, *, number: int | None = None, expected: str = ""
    ) -> Edition:
        """Puts an edition in force everywhere here; the one that it replaced.

        Raises RefusedError where that is not the version `expected`, unless this is empty.
        `number` is for those who follow another process, whose number it is.
        """
        async with self._turn:
            before = self.current
            # Where it is in force already, the answer to this was lost, and it was asked again.
            if expected and before.version not in (expected, found.version):
                raise changed(expected, before.version)
            for follower in self._followers:
                await follower(found)
            self.current = found
            self._remember(found)
            self.number = self.number + 1 if number is None else number
            self.stir()
        if self.refusal is not None and self.refusal.source == found.source:
            self.refusal = None
        if found.version != before.version:
            _log.info(
                "another policy is in force",
                version=found.version,
                replaced=before.version,
                source=found.source,
                origin=found.origin,
            )
        return before

    def refuse(self, problems: Sequence[str], *, source: Source, origin: str) -> None:
        """Says what is wrong with a policy; the one in force stays."""
        self.refusal = Refusal(
            source=source, origin=origin, at_s=self._wall(), problems=tuple(problems)
        )
        self._count()
        _log.error(
            "policy refused: the one in force stays",
            version=self.current.version,
            source=source,
            origin=origin,
            problems=list(problems),
        )

    def accepted(self, source: Source) -> None:
        """What is there now is in order, though it changes nothing."""
        if self.refusal is not None and self.refusal.source == source:
            self.refusal = None

    def kept(self, version: str) -> Edition | None:
        return next((found for found in self.history if found.version == version), None)

    def stir(self) -> None:
        """Lets everybody look again who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def stirred(self) -> None:
        """Returns with the next change, or earlier."""
        await self._changed.wait()

    async def reached(self, number: int) -> None:
        """Returns once the change of this number, or a later one, is in force here."""
        while self.number < number:
            await self._changed.wait()

    def _remember(self, found: Edition) -> None:
        others = [kept for kept in self.history if kept.version != found.version]
        self.history = deque((found, *others), maxlen=KEPT)


def changed(expected: str, current: str) -> errors.RefusedError:
    return errors.RefusedError(
        f"version {expected} was to be replaced, but {current or 'another one'} is in force by "
        "now: look at it with `aiflow policy show` and try again",
        reason="POLICY_CHANGED",
        metadata={"expected": expected, "current": current},
    )
