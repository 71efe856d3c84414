"""Group commit: all that waits in one transaction, and nobody pays for another's fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from aiflow_router.accounts.account import Who
from aiflow_router.accounts.commits import MOST_AT_ONCE, Commits, UnwrittenError
from aiflow_router.accounts.operation import Done, Operation, Outcome, Release

AWAY = OperationalError("commit", {}, Exception("server closed the connection"))


def release(name: str) -> Release:
    return Release(who=Who(tenant="acme"), request_id=name, token="t")


class Database:
    """Remembers its transactions; `fails` says what goes wrong with one."""

    def __init__(self, fails: Callable[[list[str]], BaseException | None] | None = None) -> None:
        self.fails = fails or (lambda _: None)
        self.written: list[list[str]] = []
        self.tries = 0
        self.tried = asyncio.Event()

    async def __call__(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        self.tries += 1
        self.tried.set()
        names = [one.request_id for one in operations if isinstance(one, Release)]
        await asyncio.sleep(0)
        if (error := self.fails(names)) is not None:
            raise error
        self.written.append(names)
        return [Done() for _ in names]


class Time:
    """Moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        self.now_s += wait_s
        await asyncio.sleep(0)


@asynccontextmanager
async def running(database: Database, time: Time | None = None) -> AsyncIterator[Commits]:
    time = time or Time()
    commits = Commits(database, clock=time, sleep=time.sleep, rng=lambda: 1.0)
    task = asyncio.create_task(commits.run())
    try:
        yield commits
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_what_waits_goes_in_one_transaction() -> None:
    database = Database()
    async with running(database) as commits:
        first = commits.ask(release("a"))
        await database.tried.wait()
        others = [commits.ask(release(name)) for name in "bcd"]
        await asyncio.gather(first, *others)
        await commits.idle()
    assert database.written == [["a"], ["b", "c", "d"]]
    assert (commits.commits, commits.written, commits.waiting) == (2, 4, 0)


async def test_no_transaction_is_too_large() -> None:
    database = Database()
    async with running(database) as commits:
        await asyncio.gather(
            *(commits.ask(release(str(number))) for number in range(2 * MOST_AT_ONCE + 1))
        )
    assert [len(batch) for batch in database.written] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]


async def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    database = Database()
    async with running(database) as commits:
        commits.ask(release("a")).cancel()
        await commits.ask(release("b"))
    assert database.written == [["b"]]


async def test_while_the_database_is_away_the_impatient_are_told_and_the_patient_wait() -> None:
    fails = iter([AWAY, ConnectionRefusedError("refused"), TimeoutError(), None])
    database, time = Database(lambda _: next(fails)), Time()
    async with running(database, time) as commits:
        hold, back = commits.ask(release("hold")), commits.ask(release("back"), patience_s=60)
        with pytest.raises(UnwrittenError, match="server closed the connection"):
            await hold
        assert commits.away == "server closed the connection"
        await back
        assert commits.away == ""
    assert database.written == [["back"]]
    # Twice as long each time.
    assert time.now_s == pytest.approx(0.1 + 0.2 + 0.4)


async def test_patience_ends() -> None:
    database = Database(lambda _: AWAY)
    async with running(database) as commits:
        with pytest.raises(UnwrittenError):
            await commits.ask(release("a"), patience_s=3)
    assert database.tries > 3


async def test_order_is_kept_over_an_absence() -> None:
    fails = iter([AWAY, None, None])
    database = Database(lambda _: next(fails))
    async with running(database) as commits:
        first = commits.ask(release("a"), patience_s=60)
        await database.tried.wait()
        await asyncio.gather(first, commits.ask(release("b"), patience_s=60))
    assert [name for batch in database.written for name in batch] == ["a", "b"]


async def test_one_that_cannot_be_done_is_not_the_end_of_the_others() -> None:
    wrong = IntegrityError("insert", {}, Exception("no such account"))
    database = Database(lambda names: wrong if "bad" in names else None)
    async with running(database) as commits:
        done = [commits.ask(release(name), patience_s=60) for name in ("a", "bad", "b")]
        found = await asyncio.gather(*done, return_exceptions=True)
    assert [isinstance(one, UnwrittenError) for one in found] == [False, True, False]
    assert database.written == [["a"], ["b"]]
