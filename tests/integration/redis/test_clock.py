"""Redis's clock jumps, as no test can make it: its scripts run with a time of the test's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.redis import Server

_SCRIPTS = Path(__file__).parents[3] / "router" / "aiflow_router" / "limits" / "redis"
_NOW = "redis.call('TIME')"

HOUR_S, DAY_S, YEAR_S = 3600, 86_400, 365 * 86_400
MIDNIGHT_S = 20_607 * DAY_S  # Of 2026-06-03.
NOON_S = MIDNIGHT_S + 12 * HOUR_S
HELD_S = 10


class Jumping:
    """A Redis whose time is what a test says."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._prefix = f"jumping-{time.time_ns()}"

    def takes(self, kind: str, amount: int, at_s: float, *, holder: str = "a") -> bool:
        """Whether one is granted of so many."""
        keys = (f"{self._prefix}:mark", f"{self._prefix}:bucket")
        of_all = ("take", holder, "", str(HELD_S), "0")
        of_one = (kind, str(amount), "1", str(amount), "1", "enforce", "0")
        return bool(self._ran("decide.lua", at_s, keys, (*of_all, *of_one))[1])

    def alive(self, name: str, at_s: float) -> int:
        """How many routers there are, when this one says that it is one of them."""
        told = self._ran(
            "beat.lua", at_s, (f"{self._prefix}:routers",), (name, str(HELD_S), str(HELD_S))
        )
        return int(told[0])

    def _ran(self, script: str, at_s: float, keys: Sequence[str], given: Sequence[str]) -> Any:
        text = (_SCRIPTS / script).read_text()
        assert text.count(_NOW) == 1
        text = text.replace(_NOW, f"{{{at_s}, 0}}")
        return self._server.ask("EVAL", text, str(len(keys)), *keys, *given)


@pytest.mark.parametrize(
    ("kind", "used_s", "then"),
    [
        pytest.param(
            "day", NOON_S, [(NOON_S + HOUR_S, False), (NOON_S + DAY_S, True)], id="it goes well"
        ),
        pytest.param(
            "day",
            NOON_S + YEAR_S,
            [(NOON_S, False), (NOON_S + DAY_S, True)],
            id="it was a year ahead: the day is used up, and no more than that",
        ),
        pytest.param(
            "month",
            NOON_S + YEAR_S,
            [(NOON_S, False), (NOON_S + 20 * DAY_S, False), (NOON_S + 30 * DAY_S, True)],
            id="and so is a month",
        ),
        pytest.param(
            "day",
            MIDNIGHT_S + 30,
            [(MIDNIGHT_S - 30, False), (MIDNIGHT_S + 40, False), (MIDNIGHT_S + DAY_S, True)],
            id="it is set back over midnight: the day that had begun goes on",
        ),
        pytest.param(
            "month",
            MIDNIGHT_S - 2 * DAY_S + 30,  # Of the first of June.
            [(MIDNIGHT_S - 2 * DAY_S - 30, False), (MIDNIGHT_S, False)],
            id="the month that had begun too",
        ),
    ],
)
def test_a_quota_outlives_the_clock(
    redis_server: Server, kind: str, used_s: float, then: list[tuple[float, bool]]
) -> None:
    redis = Jumping(redis_server)
    assert [redis.takes(kind, 2, used_s) for _ in range(3)] == [True, True, False]
    assert [redis.takes(kind, 2, at_s) for at_s, _ in then] == [granted for _, granted in then]


def test_a_place_that_a_clock_ahead_gave_lapses_by_the_right_one(redis_server: Server) -> None:
    redis = Jumping(redis_server)
    assert redis.takes("concurrency", 1, NOON_S + YEAR_S, holder="of a router that dies")
    assert not redis.takes("concurrency", 1, NOON_S)
    assert not redis.takes("concurrency", 1, NOON_S + HELD_S - 1)
    assert redis.takes("concurrency", 1, NOON_S + HELD_S + 1)


def test_a_router_that_a_clock_ahead_heard_is_not_alive_for_ever(redis_server: Server) -> None:
    redis = Jumping(redis_server)
    assert redis.alive("one that dies", NOON_S + YEAR_S) == 1
    assert redis.alive("another", NOON_S) == 2
    assert redis.alive("another", NOON_S + HELD_S + 1) == 1
