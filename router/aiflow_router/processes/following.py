"""A worker's side of the catalog: follows its supervisor's for as long as it runs."""

from __future__ import annotations

import asyncio
import random

import grpc
import grpc.aio
import structlog

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.catalog.snapshot import Entry
from aiflow_router.rpc.endpoints import entry_from_proto
from aiflow_sdk.command.processes import Backoff

_log = structlog.get_logger(__name__)

BACKOFF = Backoff(min_s=0.05, max_s=2.0, reset_after_s=10.0)
ENTRIES_AT_ONCE = 200


class Following:
    """What WatchEndpoints tells goes into the mirror.

    Attributes:
        now: whether changes are heard.
        lost: times that they were not heard any more.
        began: set with the first catalog.
    """

    def __init__(
        self, mirror: Mirror, owner: grpc.aio.Channel, *, rng: random.Random | None = None
    ) -> None:
        self._mirror = mirror
        self._owner = registry_pb2_grpc.RegistryServiceStub(owner)
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self.now = False
        self.lost = 0
        self.began = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled; the mirror keeps its last view while nothing is heard."""
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
                _log.warning("the catalog is not heard of any more", why=why, wait_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _follow(self) -> str:
        """Until the stream ends; why it did."""
        changes = self._owner.WatchEndpoints(registry_pb2.WatchEndpointsRequest())
        try:
            async for change in changes:
                await self._mirror.change(
                    await _entries(change),
                    removed=[(key.backend, key.address) for key in change.removed],
                    version=change.version,
                    complete=change.complete,
                )
                self.now = True
                self.began.set()
        except grpc.aio.AioRpcError as failure:
            return f"{failure.code().name}: {failure.details()}"
        finally:
            changes.cancel()
        return "the stream ended"


async def _entries(change: registry_pb2.WatchEndpointsResponse) -> list[Entry]:
    found: list[Entry] = []
    for number, entry in enumerate(change.entries, start=1):
        found.append(entry_from_proto(entry))
        if number % ENTRIES_AT_ONCE == 0:
            await asyncio.sleep(0)  # Calls move on in between.
    return found
