"""Steady calls to one model for the drill, and what became of each, second by second."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from router_unary import INFER, message

CALLERS = 8
WITHIN_S = 10.0
FAILED = "failed"
# A channel of its own for each, as callers in different processes have.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass(kw_only=True)
class Traffic:
    """Runs since it was made.

    Attributes:
        rate: calls a second, if answers come in time.
        answered: by second since the start, the calls that each model answered.
        failures: (seconds since the start, status), each call that did not end well.
        versions: of the policy, by which calls went, in the order in which they came to be.
        slowest_s: of all calls.
    """

    address: str
    model: str
    rate: float
    began_s: float = field(default_factory=time.monotonic)
    answered: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[tuple[float, str]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    calls: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    async def in_force_after(self, version: str) -> str:
        """The policy's version once calls go by another one than `version`."""
        while self.versions[-1:] in ([], [version]):
            self.changed.clear()
            await self.changed.wait()
        return self.versions[-1]

    async def calling(self) -> None:
        """One caller, until it is cancelled."""
        request = message(1024, self.model)
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            ask: Any = channel.unary_unary(f"/{INFER}")
            due_s = time.monotonic()
            while True:
                due_s = max(due_s + CALLERS / self.rate, time.monotonic())
                await asyncio.sleep(due_s - time.monotonic())
                await self._call(ask, request)

    async def _call(self, ask: Any, request: bytes) -> None:
        sent_s = time.monotonic()
        call = ask(request, timeout=WITHIN_S)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            what = FAILED
            self.failures.append((self.now_s(), f"{error.code().name}: {error.details()}"))
        else:
            told = dict(tuple(await call.trailing_metadata()))
            what = str(told["x-aiflow-served-by"]).partition("@")[0]
            self._noticed(str(told.get("x-aiflow-policy-version", "")))
        self.calls += 1
        self.answered[int(self.now_s())][what] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - sent_s)

    def _noticed(self, version: str) -> None:
        if version not in self.versions[-1:]:
            self.versions.append(version)
            self.changed.set()


@asynccontextmanager
async def running(address: str, *, model: str, rate: float) -> AsyncIterator[Traffic]:
    """Traffic until the block ends; a caller that broke ends it with its error."""
    traffic = Traffic(address=address, model=model, rate=rate)
    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(traffic.calling()) for _ in range(CALLERS)]
        try:
            yield traffic
        finally:
            for task in tasks:
                task.cancel()
