"""What was used is added up once, by whoever saw it, and read by day."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from aiflow_router.accounts import report
from aiflow_router.accounts.report import Filter, exported, summed
from aiflow_router.accounts.usage import Usage
from aiflow_router.identity.caller import Caller
from aiflow_router.storage.database import opened

DAY_S = 24 * 3600.0
ALL = Filter(from_day="0000", to_day="9999")


@dataclass(frozen=True, kw_only=True)
class Call:
    caller: Caller
    label: str = "m"
    code: str = "OK"
    counted: bool = True
    took: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int = 10
    credits: int = 0


class Clock:
    def __init__(self) -> None:
        self.now_s = 10 * DAY_S - 1  # A second before 1970-01-11.

    def __call__(self) -> float:
        return self.now_s


def caller(member: str = "ann", *, tenant: str = "acme", key: str = "aif_1") -> Caller:
    return Caller(name="", tenant=tenant, may=frozenset(), key=key, department="ml", member=member)


async def test_calls_are_added_up_by_day_and_caller(storage_url: str) -> None:
    clock = Clock()
    async with opened(storage_url) as engine:
        usage = Usage(engine, clock=clock)
        usage.add([Call(caller=caller(), took={"tokens": 5, "gpu-ms": 1.5}, credits=3)])
        usage.add([Call(caller=caller(), code="UNAVAILABLE"), Call(caller=caller("bob"))])
        usage.add([Call(caller=caller(), counted=False)])
        assert await usage.write()
        clock.now_s += 2
        usage.add([Call(caller=caller(), took={"tokens": 7})])
        await usage.close()
        found = await summed(engine, ALL, by=("day", "member"), skip=0, most=10)
        assert [(row["day"], row["member"], row["calls"], row["failed"]) for row in found] == [
            ("1970-01-10", "ann", 2, 1),
            ("1970-01-10", "bob", 1, 0),
            ("1970-01-11", "ann", 1, 0),
        ]
        total = (await summed(engine, ALL, by=(), skip=0, most=10))[0]
        assert {
            name: total[name] for name in ("calls", "tokens", "gpu_ms", "bytes", "credits")
        } == {"calls": 4, "tokens": 12, "gpu_ms": 1.5, "bytes": 40, "credits": 3}


async def test_two_routers_add_to_the_same_rows(storage_url: str) -> None:
    async with opened(storage_url) as engine, opened(storage_url) as other:
        routers = Usage(engine), Usage(other)
        for _ in range(3):
            for usage in routers:
                usage.add([Call(caller=caller()), Call(caller=caller("bob"))])
                assert await usage.write()
        found = await summed(engine, ALL, by=("member",), skip=0, most=10)
        assert [(row["member"], row["calls"]) for row in found] == [("ann", 6), ("bob", 6)]


async def test_a_commit_that_was_not_answered_is_not_added_twice(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(storage_url) as engine:
        usage = Usage(engine)
        usage.add([Call(caller=caller())])
        put = usage._put
        lost = iter([True, False, False])

        async def put_and_lose(connection: Any) -> None:
            await put(connection)
            if next(lost):
                await connection.commit()
                raise OperationalError("commit", {}, Exception("the server went away"))

        monkeypatch.setattr(usage, "_put", put_and_lose)
        assert not await usage.write()
        usage.add([Call(caller=caller())])
        assert usage.unwritten == 2
        assert await usage.write()
        assert await usage.write()
        assert (await summed(engine, ALL, by=(), skip=0, most=1))[0]["calls"] == 2
        assert usage.unwritten == 0


async def test_the_csv_has_each_row_once_whatever_its_parts(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LINES", 2)
    clock = Clock()
    async with opened(storage_url) as engine:
        usage = Usage(engine, clock=clock)
        for _ in range(2):
            usage.add([Call(caller=caller(f"m{n}"), credits=1_500_000) for n in range(5)])
            usage.add([Call(caller=caller('=1+"1"', tenant="other"))])
            clock.now_s += DAY_S
        await usage.close()
        parts = [part async for part in exported(engine, ALL)]
        assert [day for day, _ in parts] == sorted(day for day, _ in parts)
        lines = list(csv.DictReader("".join(text for _, text in parts).splitlines()))
        assert len(lines) == 12
        assert len({(line["day"], line["tenant"], line["member"]) for line in lines}) == 12
        assert {line["member"] for line in lines if line["tenant"] == "other"} == {'\'=1+"1"'}
        assert lines[0]["credits"] == "1.5"
        own = [part async for part in exported(engine, Filter(**_of(ALL), tenant="other"))]
        assert len("".join(text for _, text in own).splitlines()) == 3
        none = Filter(from_day="2000-01-01", to_day="2000-01-02")
        assert [part async for part in exported(engine, none)] == [
            ("", ",".join(report.COLUMNS) + "\r\n")
        ]


def _of(which: Filter) -> dict[str, str]:
    return {"from_day": which.from_day, "to_day": which.to_day}
