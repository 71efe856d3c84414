"""How calls ended is counted and logged once: soon, when much has gathered, or at a scrape."""

import asyncio
from dataclasses import dataclass

import orjson
from prometheus_client.parser import text_string_to_metric_families

from aiflow_router.telemetry.journal import SETTLE_AT, Journal
from aiflow_router.telemetry.metrics import Metrics


@dataclass
class Call:
    code: str = "OK"
    quiet: bool = False
    overhead_s: float | None = 0.0002
    request_id: str = "r"
    trace_id: str = ""
    tenant: str = "shop"
    asked: str = "detector"
    label: str = "detector"
    method: str = "/a.B/C"
    endpoint: str = "detector@h:1"
    fallback: str = ""
    attempts: int = 1
    cache: str = ""
    credits: int = 0
    reason: str = ""
    duration_s: float = 0.02
    ended_s: float = 0.0
    detour: None = None
    started_s: float = 0.0
    queued_s: float = 0.0
    call: None = None


def counted(metrics: Metrics) -> dict[str, float]:
    """Our own samples that are no bucket, by name and labels; the process's CPU time moves on."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if "le" not in sample.labels and sample.name.startswith("aiflow_")
    }


async def test_a_scrape_counts_what_has_just_ended() -> None:
    lines: list[bytes] = []
    metrics = Metrics()
    journal = Journal(metrics=metrics, write=lines.append)
    for code in ("OK", "OK", "UNAVAILABLE"):
        journal.attempted("b", code)
        journal.ended(Call(code=code))
    assert not lines
    found = counted(metrics)
    assert found["aiflow_requests_total['OK', 'detector', 'shop']"] == 2
    assert found["aiflow_requests_total['UNAVAILABLE', 'detector', 'shop']"] == 1
    assert found["aiflow_attempts_total['OK', 'b']"] == 2
    assert found["aiflow_request_duration_seconds_count['detector']"] == 3
    assert found["aiflow_overhead_seconds_count[]"] == 3
    assert counted(metrics) == found
    (written,) = lines
    logged = [orjson.loads(line) for line in written.splitlines()]
    assert [line["code"] for line in logged] == ["OK", "OK", "UNAVAILABLE"]
    assert logged[0]["duration_ms"] == 20


async def test_lines_are_written_a_moment_later_without_a_scrape() -> None:
    written = asyncio.Event()
    journal = Journal(metrics=Metrics(), write=lambda _: written.set())
    journal.ended(Call())
    await asyncio.wait_for(written.wait(), 5)


async def test_much_is_not_left_to_gather() -> None:
    lines: list[bytes] = []
    journal = Journal(metrics=Metrics(), write=lines.append)
    for _ in range(SETTLE_AT):
        assert not lines
        journal.ended(Call())
    assert len(lines[0].splitlines()) == SETTLE_AT
    journal.settle()
    assert len(lines) == 1


async def test_a_quiet_call_is_logged_only_when_it_fails() -> None:
    lines: list[bytes] = []
    metrics = Metrics()
    journal = Journal(metrics=metrics, write=lines.append)
    journal.ended(Call(quiet=True, overhead_s=None))
    journal.settle()
    assert not lines
    journal.ended(Call(quiet=True, code="NOT_FOUND"))
    journal.settle()
    assert [orjson.loads(line)["code"] for line in lines] == ["NOT_FOUND"]
    assert counted(metrics)["aiflow_overhead_seconds_count[]"] == 1
