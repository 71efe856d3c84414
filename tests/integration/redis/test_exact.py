"""Several processes with one Redis: together they grant what the rule says, and not one more."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from contract.buckets.kit import ask, granted, redis_buckets, rule, taken
from fixtures.redis import Server

_HAMMER = Path(__file__).with_name("hammer.py")


async def hammered(
    server: Server,
    prefix: str,
    *,
    processes: int,
    for_s: float,
    rate: float,
    burst: float,
    lease_s: float = 0.0,
) -> list[dict[str, Any]]:
    """What each of the processes tells."""
    arguments = (str(server.port), prefix, str(for_s), str(rate), str(burst), str(lease_s), "4")
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(_HAMMER), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(processes)
    ]
    try:
        for one in running:
            assert one.stdout is not None
            assert await one.stdout.readline() == b"ready\n"
        answers = await asyncio.gather(*(one.communicate(b"go\n") for one in running))
        return [json.loads(out) for out, _ in answers]
    finally:
        for one in running:
            if one.returncode is None:
                one.kill()
                await one.wait()


@pytest.mark.parametrize("lease_s", [0.0, 0.5], ids=["exact", "leased"])
async def test_four_processes_grant_what_one_would(redis_server: Server, lease_s: float) -> None:
    rate, burst, for_s = 200.0, 40.0, 3.0
    told = await hammered(
        redis_server,
        f"four-{time.time_ns()}",
        processes=4,
        for_s=for_s,
        rate=rate,
        burst=burst,
        lease_s=lease_s,
    )
    grants = sorted((asked, heard) for one in told for asked, heard in one["granted"])
    calls = sum(one["calls"] for one in told)
    assert calls > 3 * (burst + rate * for_s), "no more was asked than there was"
    last = max(heard for _, heard in grants)
    for first in range(0, len(grants), 7):
        # Decided in between, by Redis's clock, which is this machine's.
        time_s = last - grants[first][0]
        assert len(grants) - first <= burst + rate * (time_s + lease_s)
    spent_s = last - grants[0][0]
    assert len(grants) >= 0.95 * (burst + rate * spent_s) - rate * lease_s
    per_call = sum(one["sent"] for one in told) / calls
    if lease_s:
        assert per_call <= 0.1
    else:
        assert per_call == pytest.approx(1.0, abs=0.01)


async def test_a_decision_about_any_number_of_rules_is_one_round_trip(redis_server: Server) -> None:
    asks = [
        ask(rule("a", burst=1000)),
        ask(rule("b", kind="strict", amount=1000)),
        ask(rule("c", kind="concurrency", amount=1000)),
        ask(rule("d", kind="day", amount=1000)),
    ]
    async with redis_buckets(redis_server) as buckets:
        before = buckets.link.sent
        for _ in range(100):
            assert await granted(buckets, *asks)
        assert buckets.link.sent - before == 100
        assert buckets.decided["redis"] == 100


async def test_many_at_once_are_no_more_than_there_is(redis_server: Server) -> None:
    async with (
        redis_buckets(redis_server, prefix="many-at-once") as one,
        redis_buckets(redis_server, prefix="many-at-once") as other,
    ):
        of = rule(amount=0.01, burst=50)
        verdicts = await asyncio.gather(
            *(granted(buckets, ask(of)) for buckets in (one, other) for _ in range(100))
        )
        assert sum(verdicts) == 50


async def test_routers_with_another_prefix_have_limits_of_their_own(redis_server: Server) -> None:
    async with redis_buckets(redis_server) as one, redis_buckets(redis_server) as other:
        assert await granted(one, ask(rule(), 3))
        assert await granted(other, ask(rule(), 3))
        assert not await granted(one, ask(rule(), 3))


async def test_what_is_full_again_leaves_nothing_in_redis(redis_server: Server) -> None:
    prefix = f"leaves-nothing-{time.time_ns()}"
    async with redis_buckets(redis_server, prefix=prefix) as buckets:
        assert await granted(buckets, ask(rule(), 1), ask(rule("c", kind="concurrency", amount=9)))
        found = redis_server.ask("KEYS", f"{{{prefix}}}:*")
        lives = {key.decode(): redis_server.ask("PTTL", key.decode()) for key in found}
    del lives[f"{{{prefix}}}:mark"]
    assert len(lives) == 3
    assert all(0 < life_ms <= 11_000 for life_ms in lives.values()), lives


async def test_a_call_that_is_cancelled_while_redis_decides_takes_nothing(
    redis_server: Server,
) -> None:
    asks = [
        ask(rule(amount=0.01)),
        ask(rule("s", kind="strict", amount=3)),
        ask(rule("c", kind="concurrency", amount=3)),
    ]
    async with redis_buckets(redis_server) as buckets:
        with redis_server.paused():
            calls = [asyncio.create_task(taken(buckets, *asks)) for _ in range(3)]
            await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        await buckets.look(asks)  # Its answer comes after theirs.
        seen = await buckets.look(asks)
        assert [standing.remaining for standing in seen.standings] == pytest.approx(
            [3] * 3, abs=0.01
        )
        assert not buckets._places


async def test_scripts_that_somebody_flushed_come_back_by_themselves(redis_server: Server) -> None:
    one = ask(rule(amount=0.01), 2)
    async with redis_buckets(redis_server) as buckets:
        redis_server.ask("SCRIPT", "FLUSH")
        assert await granted(buckets, one, holder="it")
        redis_server.ask("SCRIPT", "FLUSH")
        buckets.settle([one], [0.0], holder="it")
        assert (await buckets.look([one])).standings[0].remaining == 3
        assert buckets.link.up
        assert not buckets.link.errors
        assert buckets.untold == 0


@pytest.mark.parametrize(
    ("of", "key", "fields"),
    [
        pytest.param(
            rule(amount=100), "rate:calls:r", {"level": "0", "at": "4e9"}, id="a bucket fills on"
        ),
        pytest.param(
            rule(kind="day", amount=3), "day:calls:r", {"of": "9e9", "used": "3"}, id="no new quota"
        ),
    ],
)
async def test_a_clock_that_was_set_back(
    redis_server: Server, of: Any, key: str, fields: dict[str, str]
) -> None:
    """What was written later than now, which a test cannot make Redis's clock do."""
    prefix = f"clock-{time.time_ns()}"
    async with redis_buckets(redis_server, prefix=prefix) as buckets:
        for name, value in fields.items():
            redis_server.ask("HSET", f"{{{prefix}}}:{key}", name, value)
        assert not await granted(buckets, ask(of)), "the clock gave what was used already"
        await asyncio.sleep(0.05)
        assert await granted(buckets, ask(of)) == (of.kind == "rate")


async def test_the_months_are_those_of_the_calendar(redis_server: Server) -> None:
    """Each day of 60 years, as the script counts them."""
    text = (Path(__file__).parents[3] / "router/aiflow_router/limits/redis/decide.lua").read_text()
    function = text[text.index("local function month_of") : text.index("local function calendar")]
    months = redis_server.ask(
        "EVAL",
        f"{function}\nlocal found = {{}}\n"
        "for day = 0, 21915 do found[day + 1] = month_of(day) end\nreturn found",
        "0",
    )
    days = [time.gmtime(86400 * day) for day in range(21916)]
    assert months == [day.tm_year * 12 + day.tm_mon - 1 for day in days]
