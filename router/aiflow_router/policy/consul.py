"""A key in Consul as a source of the policy, and as the shelf that several routers share.

Under the key lies the policy as somebody wrote it, under KEY/versions/VERSION each that was taken
lately, so that any router can roll back to it.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from aiflow_router.config.config import Config
from aiflow_router.config.file import ConfigError, parse_policy
from aiflow_router.policy.edition import Edition, edition
from aiflow_router.policy.policies import Policies, changed
from aiflow_sdk import errors
from aiflow_sdk.command.processes import Backoff
from aiflow_sdk.consul import (
    Consul,
    ConsulError,
    ConsulForbiddenError,
    ConsulMissingError,
    ConsulRefusedError,
    segment,
)

_log = structlog.get_logger(__name__)

# The age of what is known grows up to it, and a sixteenth more.
WAIT_S = 30.0
# Consul lets nobody wait for a key that is not there.
MISSING_EVERY_S = 0.5
BACKOFF = Backoff(min_s=0.25, max_s=10.0, reset_after_s=30.0)
# A write is seen by this router's own watch within milliseconds.
SEEN_WITHIN_S = 2.0
MAX_BYTES = 512 * 1024
# Versions that stay there, the newest and the one in force.
KEPT_VERSIONS = 100
# Writes of others that come between reading and writing, where nothing is expected.
TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What lies under the key; `index` grows with each write to it."""

    raw: bytes
    index: int

    def text(self) -> str:
        """Raises ConfigError."""
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            raise ConfigError([f"what lies in Consul is not text in UTF-8: {error}"]) from None


class Store:
    """Puts in force what lies under the key whenever that changes; what is wrong stays out.

    Attributes:
        began: set when Consul was asked once, whatever came of it.
        age_s: since it last said what lies there, or that nothing new does.
    """

    def __init__(
        self,
        consul: Consul,
        key: str,
        *,
        policies: Policies,
        running: Callable[[], Config],
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._consul = consul
        self._key = key
        self._policies = policies
        self._running = running
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._sleep = sleep
        self._wall = wall
        self._taken: _Found | None = None
        # Of what was taken, until it is kept: Consul may be away by then.
        self._unkept = ""
        self._only_reads = False
        self._seen_more = asyncio.Event()
        self._heard_s = asyncio.get_running_loop().time()
        self.began = asyncio.Event()

    @property
    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._heard_s

    def place(self) -> str:
        return f"Consul under {self._key}"

    async def run(self) -> None:
        """Until it is cancelled; while Consul is away the policy in force stays."""
        loop = asyncio.get_running_loop()
        index, losses, lost = 0, 0, False
        while True:
            asked_s = loop.time()
            try:
                answer = await self._consul.get(
                    self._path(),
                    index=index or None,
                    wait_s=WAIT_S if index else None,
                )
                self._heard_s = loop.time()
                # One that went backwards is of a Consul with another past.
                index = answer.index if answer.index >= index else 0
                await self._take(_found(answer.body))
                if not answer.index:  # Nobody can wait for the next one.
                    await self._sleep(MISSING_EVERY_S)
            except ConsulMissingError:
                index = 0
                self._heard_s = loop.time()
                self._lost()
                self.began.set()
                await self._sleep(MISSING_EVERY_S)
            except ConsulError as error:
                self.began.set()
                index = 0
                losses = 1 if loop.time() - asked_s > BACKOFF.reset_after_s else losses + 1
                wait_s = BACKOFF.wait_s(losses, draw=self._rng.random)
                if not lost:
                    _log.warning(
                        "the policy in Consul cannot be read: the one in force stays",
                        why=str(error),
                        key=self._key,
                    )
                lost = True
                await self._sleep(wait_s)
                continue
            losses = 0
            if lost:
                _log.info("the policy in Consul can be read again", key=self._key)
            lost = False

    async def write(self, text: str, version: str, *, expected: str) -> None:
        if len(text.encode()) > MAX_BYTES:
            raise errors.BadInputError(
                f"the policy has more than the {MAX_BYTES} bytes that Consul keeps under a key",
                violations={"document": "is too large for Consul"},
            )
        try:
            for _ in range(TRIES):
                found = await self._now()
                if expected:
                    await self._check(found, (expected, version))
                await self._keep(text.encode(), version)
                index = 0 if found is None else found.index
                answer = await self._consul.put(self._path(), text.encode(), {"cas": str(index)})
                if answer.body is True:
                    await self._take_effect()
                    return
                if expected:
                    raise changed(expected, "")
        except ConsulError as error:
            raise self._away(error) from None
        raise errors.UnavailableError(
            f"others write to {self.place()} all the time: try again", retry_after_s=1.0
        )

    async def read(self, version: str) -> str | None:
        try:
            answer = await self._consul.get(self._path(version), stale=False)
        except ConsulMissingError:
            return None
        except ConsulError as error:
            raise self._away(error) from None
        return _found(answer.body).raw.decode(errors="replace")

    def _path(self, version: str = "") -> str:
        key = "/".join(segment(part) for part in self._key.split("/"))
        return f"/v1/kv/{key}/versions/{segment(version)}" if version else f"/v1/kv/{key}"

    async def _now(self) -> _Found | None:
        try:
            return _found((await self._consul.get(self._path(), stale=False)).body)
        except ConsulMissingError:
            return None

    async def _check(self, found: _Found | None, allowed: tuple[str, str]) -> None:
        """Raises RefusedError unless the first, or already the second, of these versions is there.

        Where nothing lies there, the one in force counts.
        """
        version = self._policies.current.version
        if found is not None:
            try:
                version = (await asyncio.to_thread(self._edition, found)).version
            except ConfigError:
                version = ""  # No version at all.
        if version not in allowed:
            raise changed(allowed[0], version)

    async def _keep(self, raw: bytes, version: str) -> None:
        """Writes the version down unless it is there already; then the oldest may have to go."""
        answer = await self._consul.put(self._path(version), raw, {"cas": "0"})
        if answer.body is True:
            await self._prune(version)

    def _lost(self) -> None:
        if self._taken is None:
            return
        self._taken, self._unkept = None, ""
        current = self._policies.current.version
        _log.warning(
            "the policy is not in Consul any more: the one in force stays here, and a router that "
            f"starts goes by its file; `aiflow policy rollback {current}` writes it there again",
            key=self._key,
        )

    async def _keep_seen(self, raw: bytes, version: str) -> None:
        """Keeps what somebody wrote, where the token may; else that is for other routers to do."""
        try:
            await self._keep(raw, version)
        except ConsulForbiddenError as error:
            if not self._only_reads:
                _log.warning(
                    "versions of the policy are not kept from here: the token may only read",
                    why=str(error),
                    key=self._key,
                )
            self._only_reads = True

    async def _prune(self, newest: str) -> None:
        folder = f"{self._path()}/versions/"
        names = (await self._consul.get(folder, {"keys": ""}, stale=False)).body
        if not isinstance(names, list) or len(names) <= KEPT_VERSIONS:
            return
        # With what lies under them, which is much; so it is asked for only now.
        found = (await self._consul.get(folder, {"recurse": ""}, stale=False)).body
        assert isinstance(found, list)  # noqa: S101 - as the names were
        current = self._policies.current.version
        spared = {f"{self._key}/versions/{version}" for version in (newest, current)}
        oldest = [entry for entry in found if entry["Key"] not in spared]
        oldest.sort(key=lambda entry: int(entry["CreateIndex"]))
        for entry in oldest[: len(found) - KEPT_VERSIONS]:
            # Only as it was seen: another router may have done it, and somebody written it.
            await self._consul.delete(
                self._path(entry["Key"].rpartition("/")[2]), {"cas": str(entry["ModifyIndex"])}
            )

    async def _take_effect(self) -> None:
        """Returns when what lies there now has come to this router's own watch.

        Indexes do not tell: a Consul that lost its memory begins anew with them.
        """
        try:
            async with asyncio.timeout(SEEN_WITHIN_S):
                while True:
                    more = self._seen_more
                    if self._taken == await self._now():
                        return
                    await more.wait()
        except TimeoutError:
            _log.warning("what was written to Consul is not seen yet", key=self._key)

    async def _take(self, found: _Found) -> None:
        # A Consul that lost its memory counts from the start, and may come to the same number.
        if found != self._taken:
            self._unkept = await self._put_in_force(found)
            self._taken = found
            self._seen_more.set()
            self._seen_more = asyncio.Event()
        if self._unkept:
            await self._keep_seen(found.raw, self._unkept)
            self._unkept = ""
        self.began.set()

    async def _put_in_force(self, found: _Found) -> str:
        """The version that it is; empty for one that is refused."""
        try:
            now = await asyncio.to_thread(self._edition, found)
        except ConfigError as error:
            self._policies.refuse(error.problems, source="consul", origin=self._key)
            return ""
        self._policies.accepted("consul")
        current = self._policies.current
        if (now.version, now.source) != (current.version, current.source):
            await self._policies.put(now)
        return now.version

    def _edition(self, found: _Found) -> Edition:
        """Raises ConfigError."""
        return edition(
            parse_policy(found.text(), file=f"consul:{self._key}", running=self._running()),
            source="consul",
            origin=self._key,
            since_s=self._wall(),
        )

    def _away(self, error: ConsulError) -> errors.UnavailableError:
        return errors.UnavailableError(
            f"the policy is kept in {self.place()}, which cannot be reached: {error}",
            reason="POLICY_STORE_AWAY",
            retry_after_s=1.0,
        )


def _found(body: object) -> _Found:
    """Raises ConsulRefusedError."""
    match body:
        case [{"Value": str(value), "ModifyIndex": int(index)}]:
            return _Found(raw=base64.b64decode(value), index=index)
        case [{"Value": None, "ModifyIndex": int(index)}]:
            return _Found(raw=b"", index=index)
    raise ConsulRefusedError(
        "what Consul says of the key is no value of it; is this Consul's HTTP address?"
    )
