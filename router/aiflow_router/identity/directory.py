"""All keys, and all members where tokens name them, in memory: a call never asks the database."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from aiflow_router.identity.caller import Caller
from aiflow_router.storage.instants import shown
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

REACHED_WITHIN_S = 5.0


def _nobody() -> None:
    pass


class Directory:
    """Lives in one event loop; `Following` keeps it as the database is.

    Attributes:
        number: of the last row of the audit log that is taken in; -1 before the first look.
        names_members: whether members are kept too, which only tokens need.
        on_change: told when some of it has changed.
    """

    def __init__(
        self,
        *,
        names_members: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.number = -1
        self.names_members = names_members
        self.on_change: Callable[[], object] = _nobody
        self._clock = clock
        self._wall = wall
        self._keys: dict[bytes, Caller] = {}
        self._members: dict[tuple[str, str], Caller] = {}
        self._used: set[str] = set()
        self._looked_s = clock()
        self._changed = asyncio.Event()
        self._nudged = asyncio.Event()

    def find(self, _key: str, digest: bytes) -> Caller | None:
        """Whose key has this SHA-256. Raises AuthenticationError for one that was good once."""
        caller = self._keys.get(digest)
        if caller is None:
            return None
        if caller.barred:
            raise errors.AuthenticationError(_barred(caller))
        if caller.expires_s is not None and caller.expires_s <= self._wall():
            raise errors.AuthenticationError(
                f"API key {caller.key} expired at {shown(caller.expires_s)}: make another one with "
                "`aiflow key create`, or ask an admin of the tenant"
            )
        self._used.add(caller.key)
        return caller

    def member(self, tenant: str, member: str) -> Caller | None:
        """As who calls a member that has no key."""
        return self._members.get((tenant, member))

    def withdrawn(self, key: str, caller: Caller) -> errors.AuthenticationError | None:
        """Why `caller`, who was let in with `key`, would not be now; that it expired is no reason.

        None also of those whom it does not know: of the file, and without a key.
        """
        now = self._keys.get(hashlib.sha256(key.encode()).digest())
        now = now or self.member(caller.tenant, caller.member)
        if now is None or not now.barred:
            return None
        return errors.AuthenticationError(_barred(now), reason="KEY_WITHDRAWN")

    def __len__(self) -> int:
        """Keys, the revoked ones included."""
        return len(self._keys)

    def age_s(self) -> float:
        """How long ago the database was last seen to say nothing else."""
        return self._clock() - self._looked_s

    def replace(self, keys: dict[bytes, Caller], members: dict[tuple[str, str], Caller]) -> None:
        """All there is, read anew; calls see the whole or nothing of it."""
        self._keys, self._members = keys, members
        self.on_change()

    def change(self, keys: Iterable[tuple[bytes, Caller]]) -> None:
        """What is told of some keys; the others stay."""
        self._keys.update(keys)
        self.on_change()

    def change_members(self, members: Mapping[tuple[str, str], Caller]) -> None:
        self._members.update(members)
        self.on_change()

    def looked(self, number: int) -> None:
        """All rows of the audit log up to `number` are taken in, and there are no others."""
        self.number = number
        self._looked_s = self._clock()
        self._changed.set()
        self._changed = asyncio.Event()

    async def reached(self, number: int) -> None:
        """Returns once row `number` of the audit log is taken in; has it looked for at once.

        Or after REACHED_WITHIN_S: the change is made, and taken in when the database answers.
        """
        try:
            async with asyncio.timeout(REACHED_WITHIN_S):
                while self.number < number:
                    self.nudge()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("a change of keys is not taken in yet", number=number, at=self.number)

    def nudge(self) -> None:
        """Something may have changed: to be looked at now."""
        self._nudged.set()

    async def nudged(self, within_s: float) -> None:
        """Returns with the next nudge, or after this time."""
        try:
            async with asyncio.timeout(within_s):
                await self._nudged.wait()
        except TimeoutError:
            return
        finally:
            self._nudged.clear()

    def take_used(self) -> list[str]:
        """The ids of keys that were used since the last time, in order."""
        used, self._used = self._used, set()
        return sorted(used)


def _barred(caller: Caller) -> str:
    what = f"API key {caller.key}" if caller.key else "this token"
    return f'{what} is not good: {caller.barred}. Ask an admin of tenant "{caller.tenant}"'
