"""Gives back what a router held that died: any router that shares the database does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from aiflow_router.accounts.commits import UnwrittenError
from aiflow_router.accounts.ledger import Ledger

_log = structlog.get_logger(__name__)

EVERY_S = 5.0
FORGET_EVERY_S = 3600.0
# A request id of a call that ended so long ago may be used again.
REMEMBERED_S = 30 * 24 * 3600.0
AT_ONCE = 500


class Sweeper:
    """See the module.

    Attributes:
        expired: holds that were given back.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._sleep = sleep
        self._rng = rng
        self.expired = 0

    async def run(self) -> None:
        """Until it is cancelled; while the database is away it tries on."""
        since_forgot_s = FORGET_EVERY_S
        while True:
            try:
                found = await self._ledger.expire(most=AT_ONCE)
                if since_forgot_s >= FORGET_EVERY_S:
                    await self._ledger.forget(older_s=REMEMBERED_S)
                    since_forgot_s = 0.0
            except (SQLAlchemyError, OSError, UnwrittenError) as error:
                _log.warning("holds that expired cannot be given back yet", error=str(error))
                found = 0
            if found:
                self.expired += found
                _log.info("gave back what calls held that never ended", calls=found)
            if found < AT_ONCE:
                # Spread, or all routers would come at once.
                wait_s = EVERY_S * (0.5 + self._rng())
                since_forgot_s += wait_s
                await self._sleep(wait_s)
