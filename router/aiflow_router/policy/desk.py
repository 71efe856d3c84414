"""Where an operator asks for another policy: the rules of PolicyService, without gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from aiflow_router.config.config import Config
from aiflow_router.config.file import ConfigError, parse_policy
from aiflow_router.policy.edition import Edition, edition
from aiflow_router.policy.policies import Policies, changed
from aiflow_sdk import errors

NAME = "policy"


class Shelf(Protocol):
    """Keeps policies for several routers, each of which puts in force what lies there."""

    def place(self) -> str:
        """Where it is, for a person."""

    async def write(self, text: str, version: str, *, expected: str) -> None:
        """Returns when `text`, which is that version, is in force at this router.

        Raises RefusedError where another version than `expected` lies there, UnavailableError.
        """

    async def read(self, version: str) -> str | None:
        """An earlier version; None where it is not kept. Raises UnavailableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a change.

    Attributes:
        edition: in force now, or would be.
        replaced: the one before.
        holds: how long, for a person.
    """

    edition: Edition
    replaced: Edition
    holds: str


class Desk:
    """Changes the policy where it has to be changed to last: on the shelf if there is one."""

    def __init__(
        self,
        policies: Policies,
        *,
        running: Callable[[], Config],
        shelf: Shelf | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args: running: the configuration that the router runs by."""
        self.policies = policies
        self._running = running
        self._shelf = shelf
        self._wall = wall

    async def get(self, version: str) -> Edition:
        """The one in force where `version` is empty. Raises NotFoundError, UnavailableError."""
        if not version:
            return self.policies.current
        found = self.policies.kept(version)
        if found is None:
            found, _ = await self._from_shelf(version)
        return found

    async def set(self, text: str, *, name: str, by: str, expected: str, dry_run: bool) -> Outcome:
        """Raises BadInputError with every problem, RefusedError, UnavailableError."""
        try:
            found = await asyncio.to_thread(self._edition, text, name or NAME, by)
        except ConfigError as error:
            if not dry_run:
                self.policies.refuse(error.problems, source="admin", origin=by)
            raise refused(error) from None
        current = self.policies.current
        if dry_run:
            if expected and current.version not in (expected, found.version):
                raise changed(expected, current.version)
            return Outcome(
                edition=found, replaced=current, holds="nothing has changed: this was a dry run"
            )
        return await self._put(found, text, expected=expected)

    async def rollback(self, version: str, *, by: str, expected: str) -> Outcome:
        """Raises BadInputError, NotFoundError, RefusedError, UnavailableError."""
        if not version:
            raise errors.BadInputError(
                "which version? `aiflow policy list` shows those that are kept",
                violations={"version": "is empty"},
            )
        found = self.policies.kept(version)
        text = "" if found is None else found.text
        if found is None:
            found, text = await self._from_shelf(version)
        back = replace(found, source="admin", origin=by, since_s=self._wall())
        return await self._put(back, text, expected=expected)

    async def current(self) -> tuple[str, str]:
        return self.policies.current.version, self.policies.current.text

    async def replace(self, text: str, *, by: str, expected: str) -> None:
        await self.set(text, name=NAME, by=by, expected=expected, dry_run=False)

    async def _put(self, found: Edition, text: str, *, expected: str) -> Outcome:
        if self._shelf is None:
            before = await self.policies.put(found, expected=expected)
            holds = (
                f"this router goes by {found.version} until its file changes or it restarts: put "
                "it into aiflow.yaml to keep it"
            )
        else:
            before = self.policies.current
            await self._shelf.write(text, found.version, expected=expected)
            self.policies.accepted("admin")
            holds = f"{found.version} lies in {self._shelf.place()}: every router that follows it"
            holds += " takes it, and keeps it"
        return Outcome(edition=found, replaced=before, holds=holds)

    async def _from_shelf(self, version: str) -> tuple[Edition, str]:
        text = None if self._shelf is None else await self._shelf.read(version)
        if text is None:
            kept = ", ".join(edition.version for edition in self.policies.history)
            raise errors.NotFoundError(
                f'version "{version[:64]}" is not kept here; these are: {kept}',
                reason="POLICY_NOT_FOUND",
            )
        try:
            return await asyncio.to_thread(self._edition, text, version, ""), text
        except ConfigError as error:  # By an older router, of what this one does not know.
            raise refused(error) from None

    def _edition(self, text: str, name: str, by: str) -> Edition:
        return edition(
            parse_policy(text, file=name, running=self._running()),
            source="admin",
            origin=by,
            since_s=self._wall(),
        )


def refused(error: ConfigError) -> errors.BadInputError:
    return errors.BadInputError(
        "the policy is refused, the one in force stays:\n" + "\n".join(error.problems),
        violations={f"problem {n}": what for n, what in enumerate(error.problems, start=1)},
    )
