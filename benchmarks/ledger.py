"""Whether the ledger adds up whatever dies under load: routers at every commit, Postgres, Redis.

    python benchmarks/ledger.py [--database sqlite|postgres] [--rounds N]

Each row is one way to die. `lost` counts calls that were answered and have not paid exactly what
they were told, or were not answered and have paid though their router lived to know. A router that
is killed between writing that a call has paid and answering it has been paid for an answer that
never came: such calls are counted apart, as `unanswered`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import report
import structlog
from ledger_traffic import CALLERS, KINDS, PRICE, Told, traffic
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.account import MICRO, Who, spent
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.statement import audited
from aiflow_router.storage.database import opened, reading
from aiflow_router.storage.tables.ledger import ENTRIES, HOLDS, TRANSFERS
from aiflow_router.storage.tables.tenancy import TENANTS

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))

import ledger_redis  # noqa: E402 - it needs what is among the tests
from fixtures.postgres import Server  # noqa: E402 - it is among the tests

LOAD_S = 1.5
GIVEN = 100_000 * MICRO


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one way to die."""

    database: str
    dies: str
    when: str
    calls: int
    answered: int
    unanswered: int
    lost: int
    imbalance: int


@asynccontextmanager
async def running(engine: AsyncEngine, *, ahead_s: float = 0.0) -> AsyncIterator[Ledger]:
    """A ledger whose clock is ahead by so much."""
    ledger = Ledger(engine, clock=lambda: time.time() + ahead_s)
    task = asyncio.create_task(ledger.run())
    try:
        yield ledger
        await ledger.close()
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def prepare(url: str, tenant: str) -> None:
    """A tenant with credits."""
    async with opened(url) as engine:
        async with engine.begin() as connection:
            await connection.execute(
                insert(TENANTS).values(
                    tenant=tenant, weight=1, pays_first="pool", when_out="pool", created_s=0
                )
            )
        async with running(engine) as ledger:
            await ledger.top_up(tenant, GIVEN, actor="benchmark", note="", reference="first")


async def judge(url: str, tenant: str, told: Told) -> tuple[int, int, int]:
    """Calls that paid unanswered, calls that are lost, and the imbalance."""
    async with opened(url) as engine:
        async with running(engine, ahead_s=3600) as ledger:
            while await ledger.expire():
                pass
        paid = await _paid(engine, tenant)
        async with reading(engine) as connection:
            left = await connection.scalar(
                select(func.count())
                .select_from(HOLDS)
                .where(HOLDS.c.tenant == tenant, HOLDS.c.state == "held")
            )
        imbalance = (await audited(engine)).imbalance + int(left or 0)
    unanswered = sum(1 for name in told.unknown if paid.get(name))
    lost = sum(paid.get(name, 0) != amount for name, amount in told.answered.items())
    lost += sum(paid.get(name, 0) != 0 for name in told.failed)
    lost += sum(not 0 <= paid.get(name, 0) <= PRICE for name in told.unknown)
    return unanswered, lost, imbalance


async def _paid(engine: AsyncEngine, tenant: str) -> dict[str, int]:
    """What the ledger says that each call paid, by request id."""
    query = (
        select(TRANSFERS.c.request_id, func.sum(ENTRIES.c.amount))
        .join(ENTRIES, ENTRIES.c.number == TRANSFERS.c.number)
        .where(TRANSFERS.c.tenant == tenant, ENTRIES.c.account == spent(tenant))
        .group_by(TRANSFERS.c.request_id)
    )
    async with reading(engine) as connection:
        return {name: int(amount) for name, amount in await connection.execute(query)}


async def router_dies(url: str, database: str, kind: str, when: str, nth: int) -> Found:
    """A program kills itself at a commit."""
    tenant = f"{kind}-{when}-{nth}"
    await prepare(url, tenant)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "ledger_traffic.py"), url, tenant, kind, when, str(nth)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await program.communicate()
    if program.returncode != -9:
        raise SystemExit(f"{tenant}: ended by itself ({program.returncode}), not at its commit")
    told = Told()
    told.read(out.decode().splitlines())
    return await _found(
        *(url, tenant, told),
        database=database,
        dies=f"router, {kind}",
        when=f"{when} commit {nth}",
    )


async def _found(
    url: str, tenant: str, told: Told, *, database: str, dies: str, when: str
) -> Found:
    unanswered, lost, imbalance = await judge(url, tenant, told)
    return Found(
        database=database,
        dies=dies,
        when=when,
        calls=len(told.answered) + len(told.failed) + len(told.unknown),
        answered=len(told.answered),
        unanswered=unanswered,
        lost=lost,
        imbalance=imbalance,
    )


async def database_dies(server: Server, url: str, *, pause: bool) -> Found:
    """Postgres is killed and started, or stands still, while calls pay."""
    tenant = "paused" if pause else "killed"
    await prepare(url, tenant)
    told, over = Told(), asyncio.Event()

    def ids() -> Iterator[str]:
        for number in itertools.count():
            if over.is_set():
                return
            yield str(number)

    async with opened(url) as engine, running(engine) as ledger:
        calls = asyncio.create_task(
            traffic(ledger, Who(tenant=tenant), ids(), lambda line: told.read([line]))
        )
        for _ in range(1 if pause else 3):
            await asyncio.sleep(LOAD_S)
            if pause:
                with server.paused():
                    await asyncio.sleep(7)  # Longer than a commit may take.
            else:
                await asyncio.to_thread(server.restart)
        await asyncio.sleep(LOAD_S)
        over.set()
        await calls
    what = "stands still for 7 s" if pause else "killed 3 times"
    return await _found(url, tenant, told, database="postgres", dies="database", when=what)


async def redis_dies(folder: Path) -> Found:
    """Redis is killed and started while calls that it limits pay."""
    url = f"sqlite:///{folder / 'redis.db'}"
    told = await ledger_redis.traffic(url, folder, every_s=LOAD_S)
    return await _found(
        *(url, ledger_redis.TENANT, told), database="sqlite", dies="redis", when="killed 3 times"
    )


async def pace(url: str) -> float:
    """Calls in a second that hold and settle, many at once."""
    await prepare(url, "pace")
    done = 0
    async with opened(url) as engine, running(engine) as ledger:
        ends_s = time.monotonic() + LOAD_S

        async def calls(number: int) -> None:
            nonlocal done
            for count in itertools.count():
                taken = await ledger.hold(Who(tenant="pace"), f"{number}-{count}", 1, for_s=60)
                await ledger.settle(taken, 1, patience_s=5)
                done += 1
                if time.monotonic() > ends_s:
                    return

        await asyncio.gather(*(calls(number) for number in range(4 * CALLERS)))
    return done / LOAD_S


@contextmanager
def _postgres() -> Iterator[Server]:
    server = Server(durable=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


async def every_commit(url: str, database: str, *, rounds: int) -> list[Found]:
    return [
        await router_dies(url, database, kind, when, nth)
        for kind in KINDS
        for when in ("before", "after")
        # Not the first ones only: by then much is under way.
        for nth in range(2, 2 + 5 * rounds, 5)
    ]


async def run(databases: tuple[str, ...], *, rounds: int) -> tuple[list[Found], dict[str, float]]:
    found: list[Found] = []
    paces: dict[str, float] = {}
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/aiflow.db"
            found += await every_commit(url, "sqlite", rounds=rounds)
            found.append(await redis_dies(Path(folder)))
            paces["priced_calls_per_s_sqlite"] = await pace(url)
    if "postgres" in databases:
        with _postgres() as server:
            url = server.url()
            found += await every_commit(url, "postgres", rounds=rounds)
            for pause in (False, True):
                found.append(await database_dies(server, url, pause=pause))
            paces["priced_calls_per_s_postgres"] = await pace(url)
    return found, paces


def show(found: list[Found]) -> None:
    table = Table(title="what dies while calls pay", title_justify="left")
    for name in Found.__dataclass_fields__:
        table.add_column(name)
    for one in found:
        table.add_row(*(str(value) for value in asdict(one).values()))
    Console(width=120).print(table)


WANTED = {"ledger_imbalance": "0", "ledger_lost": "0"}


def figures(
    databases: tuple[str, ...] = ("sqlite", "postgres"), *, rounds: int = 1
) -> dict[str, float]:
    """Prints the table of what died; its sums, and how many calls a second can pay."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found, paces = asyncio.run(run(databases, rounds=rounds))
    show(found)
    return {
        "ledger_imbalance": sum(one.imbalance for one in found),
        "ledger_lost": sum(one.lost for one in found),
        "ledger_unanswered": sum(one.unanswered for one in found),
        **paces,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append")
    parser.add_argument("--rounds", type=int, default=1, help="commits of each kind to die at")
    given = parser.parse_args()
    found = figures(tuple(given.database or ("sqlite", "postgres")), rounds=given.rounds)
    report.write("ledger", found, wanted=WANTED)
    return 1 if found["ledger_imbalance"] or found["ledger_lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
