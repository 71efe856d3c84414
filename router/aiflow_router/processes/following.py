"""A worker's side of what its supervisor owns: follows it for as long as it runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import structlog
from pydantic import ValidationError

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.catalog.snapshot import Entry
from aiflow_router.policy.policies import Policies
from aiflow_router.rpc.endpoints import entry_from_proto
from aiflow_router.rpc.policy import edition_from_proto
from aiflow_sdk.command.processes import Backoff

_log = structlog.get_logger(__name__)

BACKOFF = Backoff(min_s=0.05, max_s=2.0, reset_after_s=10.0)
ENTRIES_AT_ONCE = 200

Listen = Callable[[], AsyncIterator[None]]
"""Asks the owner, and yields each time that what it told is in force. Raises AioRpcError."""


class Following:
    """Listens to the owner, and again when it was lost.

    Attributes:
        now: whether changes are heard.
        lost: times that they were not heard any more.
        began: set when all that there is was heard for the first time.
    """

    def __init__(self, what: str, listen: Listen, *, rng: random.Random | None = None) -> None:
        self._what = what
        self._listen = listen
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self.now = False
        self.lost = 0
        self.began = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled; what was heard last holds while nothing is heard."""
        loop = asyncio.get_running_loop()
        losses = 0
        while True:
            began_s = loop.time()
            why = await self._follow()
            losses = 1 if loop.time() - began_s > BACKOFF.reset_after_s else losses + 1
            wait_s = BACKOFF.wait_s(losses, draw=self._rng.random)
            if self.now:
                self.now = False
                self.lost += 1
                _log.warning(f"the {self._what} is not heard of any more", why=why, wait_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _follow(self) -> str:
        """Until the stream ends; why it did."""
        try:
            async for _ in self._listen():
                self.now = True
                self.began.set()
        except grpc.aio.AioRpcError as failure:
            return f"{failure.code().name}: {failure.details()}"
        return "the stream ended"


def catalog(mirror: Mirror, owner: grpc.aio.Channel) -> Listen:
    """What WatchEndpoints tells goes into the mirror."""
    stub = registry_pb2_grpc.RegistryServiceStub(owner)

    async def listen() -> AsyncIterator[None]:
        changes = stub.WatchEndpoints(registry_pb2.WatchEndpointsRequest())
        try:
            async for change in changes:
                await mirror.change(
                    await _entries(change),
                    removed=[(key.backend, key.address) for key in change.removed],
                    version=change.version,
                    complete=change.complete,
                )
                yield
        finally:
            changes.cancel()

    return listen


def policy(policies: Policies, owner: grpc.aio.Channel) -> Listen:
    """What PolicyService.Watch tells comes into force."""
    stub = policy_pb2_grpc.PolicyServiceStub(owner)

    async def listen() -> AsyncIterator[None]:
        changes = stub.Watch(policy_pb2.WatchPolicyRequest())
        try:
            async for change in changes:
                try:
                    found = await asyncio.to_thread(edition_from_proto, change.policy)
                except ValidationError as error:
                    # The owner has checked it, as another version of the program.
                    _log.error(
                        "the supervisor's policy is not understood: restart the router",
                        version=change.policy.version,
                        error=str(error),
                    )
                    continue
                await policies.put(found, number=change.number)
                yield
        finally:
            changes.cancel()

    return listen


async def _entries(change: registry_pb2.WatchEndpointsResponse) -> list[Entry]:
    found: list[Entry] = []
    for number, entry in enumerate(change.entries, start=1):
        found.append(entry_from_proto(entry))
        if number % ENTRIES_AT_ONCE == 0:
            await asyncio.sleep(0)  # Calls move on in between.
    return found
