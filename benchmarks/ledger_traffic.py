"""Calls that pay, as a program or in this process; each says what it was told.

So it can be compared with what the ledger has afterwards.

    python benchmarks/ledger_traffic.py URL TENANT KIND WHEN NTH

kills itself (-9) `before` or `after` the NTH commit that has an operation of KIND in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts import rows
from aiflow_router.accounts.account import MICRO, Who
from aiflow_router.accounts.commits import UnwrittenError
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.operation import Hold, Operation, Release, Settle
from aiflow_router.storage.database import opened
from aiflow_sdk import errors

KINDS = ("hold", "settle", "release", "expire")
PRICE = 5 * MICRO
CALLERS = 16
# No fault point is further away than that.
CALLS = 4_000


@dataclass(slots=True, kw_only=True)
class Told:
    """What callers were told, by request id.

    Attributes:
        answered: what they were told that it cost.
        failed: got no answer, and so must not have paid.
        unknown: their router died, or nothing was heard of the end.
    """

    answered: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def read(self, lines: Sequence[str]) -> None:
        """What a program wrote, whose last line may be cut."""
        for line in lines:
            match line.split():
                case ["asked", name]:
                    self.unknown.add(name)
                case ["answered", name, amount]:
                    self.unknown.discard(name)
                    self.answered[name] = int(amount)
                case ["failed", name]:
                    self.unknown.discard(name)
                    self.failed.add(name)


async def caller(
    ledger: Ledger, who: Who, ids: Iterator[str], say: Callable[[str], object], rng: random.Random
) -> None:
    """One call after the other, of which some fail and some are left by who made them."""
    for name in ids:
        say(f"asked {name}")
        what = rng.random()
        try:
            taken = await ledger.hold(who, name, PRICE, for_s=-1 if what > 0.8 else 600)
            await asyncio.sleep(0)
            if what > 0.8:
                # As if it had been another router's, which died.
                say(f"failed {name}")
            elif what > 0.5:
                ledger.release(taken)
                say(f"failed {name}")
            else:
                amount = await ledger.settle(taken, rng.randint(1, PRICE), patience_s=5)
                say(f"answered {name} {amount}")
        except errors.UnavailableError:
            say(f"failed {name}")


async def traffic(
    ledger: Ledger, who: Who, ids: Iterator[str], say: Callable[[str], object]
) -> None:
    """Until `ids` end."""
    rng = random.Random(who.tenant)  # noqa: S311 - a load, no secret
    expiring = asyncio.create_task(_expire(ledger))
    await asyncio.gather(*(caller(ledger, who, ids, say, rng) for _ in range(CALLERS)))
    expiring.cancel()
    await asyncio.wait((expiring,))


async def _expire(ledger: Ledger) -> None:
    while True:
        with contextlib.suppress(SQLAlchemyError, OSError, UnwrittenError):
            await ledger.expire(most=8)
        await asyncio.sleep(0.001)


class Fault:
    """Ends this process at a commit; nothing of it is in the product."""

    def __init__(self, kind: str, when: str, nth: int) -> None:
        self._kind = kind
        self._when = when
        self._left = nth
        self._now: set[str] = set()

    def install(self, engine: AsyncEngine) -> None:
        applied, dialect = rows.applied, engine.sync_engine.dialect
        commit = dialect.do_commit

        async def watched(
            engine: AsyncEngine, operations: Sequence[Operation], *, now_s: float
        ) -> Any:
            self._now = {_kind(operation) for operation in operations}
            try:
                return await applied(engine, operations, now_s=now_s)
            finally:
                self._now = set()

        def do_commit(connection: Any) -> None:
            hit = self._kind in self._now
            self._left -= hit
            hit = hit and self._left == 0
            if hit and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            commit(connection)
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)

        rows.applied = watched
        setattr(dialect, "do_commit", do_commit)  # noqa: B010 - for mypy it is a method


def _kind(operation: Operation) -> str:
    if isinstance(operation, Release):
        return "expire" if operation.expired else "release"
    return {Hold: "hold", Settle: "settle"}.get(type(operation), "grant")


async def main(url: str, tenant: str, kind: str, when: str, nth: int) -> None:
    async with opened(url) as engine:
        Fault(kind, when, nth).install(engine)
        ledger = Ledger(engine)
        running = asyncio.create_task(ledger.run())
        ids = (f"{os.getpid()}-{number}" for number in itertools.count())
        say = lambda line: os.write(1, f"{line}\n".encode())  # noqa: E731
        await traffic(ledger, Who(tenant=tenant), itertools.islice(ids, CALLS), say)
        running.cancel()


if __name__ == "__main__":
    URL, TENANT, KIND, WHEN, NTH = sys.argv[1:]
    asyncio.run(main(URL, TENANT, KIND, WHEN, int(NTH)))
