"""What became of recent calls: bounded, found by id, plain."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import orjson
import pytest

from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import Metrics
from aiflow_router.telemetry.trail import Note, Trail


@dataclass
class Sent:
    notes: list[Note] | None = None


@dataclass
class Call:
    request_id: str = "r"
    code: str = "OK"
    call: Sent | None = field(default_factory=Sent)
    queued_s: float = 0.0
    detour: None = None
    started_s: float = 100.0
    quiet: bool = False
    overhead_s: float | None = 0.0002
    trace_id: str = ""
    tenant: str = "shop"
    asked: str = "detector"
    label: str = "detector"
    method: str = "/a.B/C"
    endpoint: str = "detector@h:1"
    attempts: int = 1
    reason: str = ""
    fallback: str = ""
    cache: str = ""
    credits: int = 0
    duration_s: float = 0.02
    ended_s: float = 100.02


def line(call: Call, at: str = "2026-01-01T00:00:00Z") -> bytes:
    return orjson.dumps({"request_id": call.request_id, "timestamp": at, "code": call.code})


def kept(trail: Trail, *calls: Call) -> None:
    trail.keep(calls, [0.1] * len(calls), [line(call) for call in calls])


FAILED = Call(request_id="failed", code="UNAVAILABLE", call=None)
RETRIED = Call(request_id="retried", call=Sent([Note(at_s=100.5, because="a"), Note(at_s=100.25)]))


@pytest.mark.parametrize(
    ("calls", "sought", "found"),
    [
        pytest.param([Call()], "r", 1, id="a call is found by its id"),
        pytest.param([Call()], "other", 0, id="another one is not"),
        pytest.param([Call(request_id="r2")], "r", 0, id="a part of an id is no id"),
        pytest.param([Call(code="r")], "r", 1, id="what else says the same is not the id"),
        pytest.param([Call(request_id="x", code="r")], "r", 0, id="also where it comes first"),
        pytest.param([Call(), Call()], "r", 2, id="callers choose ids: all that match are found"),
        pytest.param([Call() for _ in range(9)], "r", 4, id="the oldest are forgotten"),
        pytest.param([FAILED, *[Call()] * 9], "failed", 1, id="a failed call outlives many good"),
        pytest.param([RETRIED, *[Call()] * 9], "retried", 1, id="so does one tried again"),
        pytest.param([FAILED], "failed", 1, id="in both rings it is one call"),
        pytest.param([FAILED, *[Call(code="X")] * 9], "failed", 0, id="until newer ones failed"),
    ],
)
def test_calls_are_found(calls: list[Call], sought: str, found: int) -> None:
    trail = Trail(newest=4, newest_noted=2)
    for call in calls:
        kept(trail, call)
    assert len(trail.find(sought)) == found


def test_those_that_ended_with_the_oldest_are_kept_with_it() -> None:
    trail = Trail(newest=4)
    for _ in range(5):
        kept(trail, *[Call()] * 3)
    assert len(trail.find("r")) == 6


def test_the_newest_comes_first() -> None:
    trail = Trail()
    call = Call()
    times = ["2026-01-01T00:00:01Z", "2026-01-01T00:00:03Z", "2026-01-01T00:00:02Z"]
    trail.keep([call] * 3, [None] * 3, [line(call, at) for at in times])
    assert [trace.logged["timestamp"] for trace in trail.find("r")] == sorted(times, reverse=True)


def test_notes_come_in_order_and_count_from_when_the_call_came() -> None:
    trail = Trail()
    kept(trail, RETRIED)
    (trace,) = trail.find("retried")
    assert [at_s for at_s, _ in trace.notes] == [0.25, 0.5]
    assert trace.router_s == 0.1


async def test_the_journal_hands_over_what_it_logs() -> None:
    journal = Journal(metrics=Metrics(), write=lambda _: None)
    for call in (Call(request_id="a"), Call(request_id="b", quiet=True), FAILED):
        journal.ended(call)
    journal.settle()
    assert [len(journal.trail.find(one)) for one in ("a", "b", "failed")] == [1, 0, 1]
    (trace,) = journal.trail.find("a")
    assert trace.logged["model"] == "detector"
    assert trace.router_s == 0.0002


async def test_no_call_is_kept_alive() -> None:
    journal = Journal(metrics=Metrics(), write=lambda _: None)
    call = Call(call=Sent([Note(at_s=0.0)]))
    gone = weakref.ref(call)
    journal.ended(call)
    journal.settle()
    del call
    assert gone() is None
    assert len(journal.trail.find("r")) == 1
