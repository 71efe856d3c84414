"""Redis is killed, stopped and started again under load: no call hangs, no limit is forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from contract.buckets.kit import ask, granted, redis_buckets, rule, taken
from fixtures.redis import Server, StartRedis

from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis import buckets as module
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.limits.redis.link import AwayError, Settings
from aiflow_router.limits.rule import Ask

TIMEOUT_S = 1.0


async def until(true: Callable[[], bool], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - polls what has no event
            await asyncio.sleep(0.005)


async def restarted(server: Server, buckets: RedisBuckets) -> None:
    server.kill()
    await until(lambda: buckets.state == "away")
    server.start()
    await until(lambda: buckets.state == "redis")


@dataclass
class Load:
    """Calls that were made in the meantime."""

    calls: int = 0
    granted: list[tuple[float, str]] = field(default_factory=list)
    by: set[str] = field(default_factory=set)
    slowest_s: float = 0.0

    async def more(self, count: int = 20) -> None:
        aim = self.calls + count
        await until(lambda: self.calls >= aim)


@asynccontextmanager
async def load(buckets: RedisBuckets, *asks: Ask, at_once: int = 4) -> AsyncIterator[Load]:
    made = Load()
    stop = asyncio.Event()

    async def calls(name: int) -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            made.calls += 1
            verdict = await taken(buckets, *asks, holder=f"{name}.{made.calls}")
            made.slowest_s = max(made.slowest_s, time.monotonic() - began_s)
            made.by.add(verdict.by)
            if verdict.granted:
                made.granted.append((began_s, verdict.by))
            await asyncio.sleep(0.002)

    running = [asyncio.create_task(calls(name)) for name in range(at_once)]
    try:
        await made.more()
        yield made
    finally:
        stop.set()
        await asyncio.gather(*running)


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize(("away", "lets"), [("open", True), ("closed", False), ("share", True)])
async def test_while_redis_is_away_each_rule_does_what_it_says(
    start_redis: StartRedis, how: str, away: Any, lets: bool
) -> None:
    server = start_redis()
    of = rule(amount=1000, burst=1000, away=away)
    async with redis_buckets(server, timeout_s=TIMEOUT_S) as buckets, load(buckets, ask(of)) as met:
        assert met.by == {"redis"}
        server.stop() if how == "stopped" else server.kill()
        await until(lambda: buckets.state == "away")
        met.by.clear()
        before = len(met.granted)
        await met.more()
        assert met.by - {"redis"} == {away}
        assert (len(met.granted) > before) == lets
        server.go_on() if how == "stopped" else server.start()
        await until(lambda: buckets.state == "redis")
        await met.more()
        met.by.clear()
        await met.more()
        assert met.by == {"redis"}
    assert met.slowest_s < 2 * TIMEOUT_S


async def test_of_many_calls_each_waits_for_a_dead_redis_once_at_most(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    one = ask(rule(away="open"))
    async with redis_buckets(server, timeout_s=TIMEOUT_S) as buckets:
        with server.paused():
            began_s = time.monotonic()
            first = await asyncio.gather(*(taken(buckets, one) for _ in range(50)))
            waited_s = time.monotonic() - began_s
            began_s = time.monotonic()
            then = [await taken(buckets, one) for _ in range(200)]
            went_on_s = time.monotonic() - began_s
    assert {verdict.by for verdict in first} == {verdict.by for verdict in then} == {"open"}
    assert TIMEOUT_S <= waited_s < 2 * TIMEOUT_S
    assert went_on_s < TIMEOUT_S
    assert buckets.link.errors["timeout"] == 1


async def test_a_router_that_starts_while_redis_is_away_serves(start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    async with redis_buckets(server) as buckets:
        assert buckets.state == "away"
        assert (await taken(buckets, ask(rule(away="share")))).by == "share"
        server.start()
        await until(lambda: buckets.state == "redis")
        assert (await taken(buckets, ask(rule()))).by == "redis"


async def test_what_was_granted_before_a_restart_is_not_granted_again(
    start_redis: StartRedis,
) -> None:
    """Redis has lost its state: buckets begin empty, and the log of a strict rule as if full."""
    server = start_redis()
    bucket = ask(rule("b", amount=20, burst=10, away="closed"))
    log = ask(rule("s", kind="strict", amount=3, period_s=1.0, away="closed"))
    async with redis_buckets(server) as buckets:
        for _ in range(3):
            assert await granted(buckets, log)
        assert await granted(buckets, ask(bucket.rule, 10))
        before_s = time.monotonic()
        await restarted(server, buckets)
        assert not await granted(buckets, log)
        assert not await granted(buckets, ask(bucket.rule, 10))
        await asyncio.sleep(max(0.0, before_s + 0.5 - time.monotonic()))
        assert not await granted(buckets, log)
        await asyncio.sleep(1.0)
        assert await granted(buckets, ask(bucket.rule, 9.9))
        for _ in range(3):
            assert await granted(buckets, log)


async def test_the_first_router_of_a_new_redis_finds_full_buckets(start_redis: StartRedis) -> None:
    async with redis_buckets(start_redis()) as buckets:
        assert await granted(buckets, ask(rule(amount=0.01), 3))


async def test_a_redis_that_keeps_its_state_goes_on_after_a_kill(start_redis: StartRedis) -> None:
    server = start_redis(keeps=True)
    used = [ask(rule(amount=0.01), 3), ask(rule("d", kind="day", amount=3), 3)]
    async with redis_buckets(server) as buckets:
        assert await granted(buckets, *used)
        await restarted(server, buckets)
        seen = await buckets.look(used)
        assert [standing.remaining for standing in seen.standings] == pytest.approx([0, 0], abs=0.1)


async def test_no_more_is_granted_through_an_outage_than_redis_and_the_share_have(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    rate, burst = 50.0, 20.0
    of = rule(amount=rate, burst=burst, away="share")
    began_s = time.monotonic()
    async with redis_buckets(server, timeout_s=TIMEOUT_S) as buckets, load(buckets, ask(of)) as met:
        for _ in range(2):
            server.kill()
            await met.more(100)
            server.start()
            await until(lambda: buckets.state == "redis")
            await met.more(100)
    passed_s = time.monotonic() - began_s
    by_redis = sum(by == "redis" for _, by in met.granted)
    by_share = sum(by == "share" for _, by in met.granted)
    assert by_share > 0
    assert by_redis <= burst + rate * passed_s
    assert by_share <= burst + rate * passed_s
    assert by_redis + by_share <= 2 * burst + rate * passed_s + burst


async def test_a_call_that_was_let_go_while_redis_was_away_gives_nothing_back_there(
    start_redis: StartRedis,
) -> None:
    server = start_redis(keeps=True)
    one = ask(rule(amount=0.01, away="open"), 2)
    async with redis_buckets(server) as buckets:
        assert await granted(buckets, one, holder="before")
        server.kill()
        await until(lambda: buckets.state == "away")
        assert await granted(buckets, one, holder="meanwhile")
        server.start()
        await until(lambda: buckets.state == "redis")
        buckets.settle([one], [0.0], holder="meanwhile")
        assert (await buckets.look([one])).standings[0].remaining == pytest.approx(1, abs=0.1)
        buckets.settle([one], [0.0], holder="before")
        assert (await buckets.look([one])).standings[0].remaining == pytest.approx(3, abs=0.1)


async def test_a_place_that_was_left_while_redis_was_away_is_free_when_it_is_back(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    one = ask(rule(kind="concurrency", amount=1, away="closed"))
    async with redis_buckets(server, timeout_s=TIMEOUT_S) as buckets:
        assert await granted(buckets, one, holder="it")
        with server.paused():
            assert not await granted(buckets, one, holder="other")
            buckets.settle([one], [1.0], holder="it")
            assert buckets.untold == 1
        await until(lambda: buckets.state == "redis")
        assert await granted(buckets, one, holder="next")


async def test_a_place_is_held_for_as_long_as_its_call_lasts_and_its_router_lives(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLACE_S", 0.4)
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    server = start_redis()
    one = ask(rule(kind="concurrency", amount=1, away="closed"))
    async with redis_buckets(server, prefix="places") as watching:
        async with redis_buckets(server, prefix="places") as dying:
            assert await granted(dying, one, holder="it")
            await asyncio.sleep(0.8)
            assert not await granted(watching, one)
        # It is gone without a word about its call.
        async with asyncio.timeout(5):
            while not await granted(watching, one, holder="next"):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)


async def test_places_come_back_after_redis_lost_them(start_redis: StartRedis) -> None:
    server = start_redis()
    one = ask(rule(kind="concurrency", amount=1, away="closed"))
    async with redis_buckets(server) as buckets:
        assert await granted(buckets, one, holder="it")
        await restarted(server, buckets)
        assert not await granted(buckets, one, holder="other")
        buckets.settle([one], [1.0], holder="it")
        assert await granted(buckets, one, holder="other")


async def test_routers_know_how_many_they_are(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    server = start_redis()
    of = rule(kind="concurrency", amount=2, away="share")
    async with (
        redis_buckets(server, prefix="seats") as one,
        redis_buckets(server, prefix="seats") as two,
    ):
        async with redis_buckets(server, prefix="seats") as three:
            all_three = (one, two, three)
            await until(lambda: [each.routers for each in all_three] == [3, 3, 3])
            server.kill()
            await until(lambda: {each.state for each in all_three} == {"away"})
            took = [await granted(each, ask(of)) for each in all_three for _ in range(2)]
            assert sum(took) == 2, "all shares together are more than the rule"
            server.start()
            await until(lambda: {each.state for each in all_three} == {"redis"})
        await until(lambda: (one.routers, two.routers) == (2, 2))


async def test_a_router_that_left_is_not_among_them_again_by_its_next_beat(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    server = start_redis()

    async def beaten(buckets: RedisBuckets) -> None:
        sent = buckets.link.sent
        await until(lambda: buckets.link.sent >= sent + 3)

    async with (
        redis_buckets(server, prefix="left") as one,
        redis_buckets(server, prefix="left") as two,
    ):
        await until(lambda: one.routers == 2)
        await two.leave()
        await beaten(two)
        await beaten(one)
        assert one.routers == 1
        assert two.routers == 2, "it takes no share among the others, whom it does not belong to"


@pytest.mark.parametrize(
    ("settings", "then"),
    [
        pytest.param("requirepass secret\n", "NOAUTH", id="it asks for a password"),
        pytest.param("replicaof 127.0.0.1 1\n", "READONLY", id="it is a replica"),
        pytest.param("cluster-enabled yes\n", "cluster", id="it is a node of a cluster"),
        pytest.param("maxmemory 1b\n", "OOM", id="its memory is full"),
        pytest.param("rename-command EVALSHA ''\n", "unknown command", id="it lacks a command"),
    ],
)
async def test_a_redis_that_is_of_no_use_is_away_and_it_is_said_why(
    start_redis: StartRedis, capsys: pytest.CaptureFixture[str], settings: str, then: str
) -> None:
    server: Server = start_redis(settings=settings)
    async with redis_buckets(server) as buckets:
        assert buckets.state == "away"
        assert buckets.link.errors["refused"] == 1
        assert not await granted(buckets, ask(rule(away="closed")))
    assert then in capsys.readouterr().out


async def test_a_redis_that_becomes_a_replica_is_away_until_it_is_none(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    one = ask(rule(amount=1000, burst=1000, away="open"))
    async with redis_buckets(server) as buckets:
        server.ask("REPLICAOF", "127.0.0.1", "1")
        assert (await taken(buckets, one)).by == "open"
        assert buckets.state == "away"
        server.ask("REPLICAOF", "NO", "ONE")
        await until(lambda: buckets.state == "redis")
        assert (await taken(buckets, one)).by == "redis"


async def test_what_answers_and_is_no_redis_is_away(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    server = Server(tmp_path)
    server.port = other.sockets[0].getsockname()[1]
    async with other, redis_buckets(server) as buckets:
        assert buckets.state == "away"
        assert buckets.link.errors["refused"] == 1


async def test_what_calls_tell_redis_while_it_is_greeted_goes_to_their_database(
    start_redis: StartRedis,
) -> None:
    server = start_redis(settings="user default on >secret ~* &* +@all")
    settings = Settings(port=server.port, password="secret", database=3, timeout_s=5.0)
    buckets = RedisBuckets(settings, prefix="greeted", local=Memory())
    running = asyncio.create_task(buckets.run())
    while buckets.state == "away":
        with suppress(AwayError):
            buckets.link.ask("INCR", "told")
        await asyncio.sleep(0)
    found = (await buckets.link.ask("INFO", "keyspace")).decode()
    running.cancel()
    await asyncio.wait((running,))
    assert "db3:" in found
    assert "db0:" not in found


@pytest.mark.parametrize("turns", [1, 2], ids=["before it asked", "before it read the answer"])
async def test_a_router_that_was_busy_itself_does_not_blame_redis(
    start_redis: StartRedis, turns: int
) -> None:
    """The answer was there in time; this process came late to ask or to read it."""
    one = ask(rule(amount=1000, burst=1000))
    async with redis_buckets(start_redis(), timeout_s=0.05) as buckets:
        for _ in range(5):
            call = asyncio.create_task(taken(buckets, one))
            for _ in range(turns):  # In the second it is sent.
                await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - the harm that is done
            assert (await call).by == "redis"
        assert not buckets.link.errors
