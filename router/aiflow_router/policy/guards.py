"""What guards stop, as changes of the policy: so it holds in all processes, and is seen and kept.

The process whose guard stops a side sends it nothing from that moment on, whatever becomes of the
change here.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from aiflow_router.routing.guard import Stop
from aiflow_sdk import canary, errors
from aiflow_sdk.command.processes import Backoff

_log = structlog.get_logger(__name__)

BACKOFF = Backoff(min_s=0.25, max_s=10.0, reset_after_s=30.0)


class Changing(Protocol):
    """Where the policy is changed: the desk, or that of the process that has it."""

    async def current(self) -> tuple[str, str]:
        """The version in force and its text. Raises AiflowError."""

    async def replace(self, text: str, *, by: str, expected: str) -> None:
        """Raises AiflowError: RefusedError where another version is in force by then."""


class Guards:
    """Takes note of stops, and writes them down one after the other."""

    def __init__(
        self,
        *,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._stops: asyncio.Queue[tuple[str, str, Stop]] = asyncio.Queue()
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._sleep = sleep

    def stopped(self, model: str, side: str, stop: Stop) -> None:
        self._stops.put_nowait((model, side, stop))

    async def run(self, policies: Changing) -> None:
        """Until it is cancelled."""
        while True:
            model, side, stop = await self._stops.get()
            losses = 0
            while True:
                try:
                    await _write(policies, model, side, stop)
                except errors.AiflowError as error:
                    losses += 1
                    _log.warning(
                        "what a guard stopped is not in the policy yet: it holds here only",
                        model=model,
                        side=side,
                        error=str(error),
                    )
                    await self._sleep(BACKOFF.wait_s(losses, draw=self._rng.random))
                else:
                    break


async def _write(policies: Changing, model: str, side: str, stop: Stop) -> None:
    version, text = await policies.current()
    found: dict[str, Any] = json.loads(text)
    changed = canary.stopped(found, model, side)
    if changed != found:
        by = f"the guard of {model}: {side} stopped, {stop.why}"
        await policies.replace(json.dumps(changed), by=by, expected=version)
