"""Metrics of several workers as those of one router."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aiflow_router.processes.merge import kept, merged, parsed


class Worker:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("aiflow_calls", "Calls.", ("model",), registry=self.registry)
        self.took = Histogram("aiflow_took", "Time.", buckets=(1, 2), registry=self.registry)
        self.inflight = Gauge("aiflow_inflight", "Now.", ("backend",), registry=self.registry)
        self.endpoints = Gauge(
            "aiflow_endpoints", "Known.", ("backend", "state"), registry=self.registry
        )
        self.undescribed = Gauge("aiflow_endpoints_undescribed", "?", registry=self.registry)
        self.memory = Gauge("process_resident_memory_bytes", "RSS.", registry=self.registry)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def lines(text: bytes) -> set[str]:
    return {line for line in text.decode().splitlines() if not line.startswith("#")}


def two() -> tuple[Worker, Worker]:
    one, other = Worker(), Worker()
    one.calls.labels("a").inc(2)
    other.calls.labels("a").inc(3)
    other.calls.labels("b").inc(1)
    one.took.observe(0.5)
    other.took.observe(1.5)
    one.inflight.labels("x").set(4)
    other.inflight.labels("x").set(5)
    one.endpoints.labels("x", "ready").set(3)
    other.endpoints.labels("x", "ready").set(2)
    other.endpoints.labels("x", "unreachable").set(1)
    one.undescribed.set(1)
    other.undescribed.set(3)
    one.memory.set(100)
    other.memory.set(200)
    return one, other


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("counters are summed by their labels", 'aiflow_calls_total{model="a"} 5.0'),
        ("a label that one worker alone has is there", 'aiflow_calls_total{model="b"} 1.0'),
        ("buckets are summed", 'aiflow_took_bucket{le="1.0"} 1.0'),
        ("counts of histograms are summed", "aiflow_took_count 2.0"),
        ("what is in flight is summed", 'aiflow_inflight{backend="x"} 9.0'),
        ("endpoints are not multiplied", 'aiflow_endpoints{backend="x",state="ready"} 2.5'),
        (
            "views of endpoints add up to their number",
            'aiflow_endpoints{backend="x",state="unreachable"} 0.5',
        ),
        ("what all have to learn is the most that one has", "aiflow_endpoints_undescribed 3.0"),
        ("processes are told apart", 'process_resident_memory_bytes{worker="2"} 200.0'),
        ("the supervisor is a process too", 'process_resident_memory_bytes{worker="supervisor"}'),
        ("the supervisor's own gauges replace those of workers", "aiflow_own 7.0"),
    ],
)
def test_two_workers_are_told_as_one(what: str, line: str) -> None:
    one, other = two()
    own = Worker()
    Gauge("aiflow_own", "Own.", registry=own.registry).set(7)
    for told_by_workers in (own.inflight, own.endpoints, own.undescribed):
        own.registry.unregister(told_by_workers)
    told = merged(
        {"1": parsed(one.text()), "2": parsed(other.text())}, total={}, own=parsed(own.text())
    )
    assert any(found.startswith(line) for found in lines(told)), told.decode()


def test_what_a_worker_counted_stays_when_it_ends() -> None:
    one, other = two()
    total = kept({}, parsed(one.text()))
    told = lines(merged({"2": parsed(other.text())}, total=total, own={}))
    assert 'aiflow_calls_total{model="a"} 5.0' in told
    assert "aiflow_took_count 2.0" in told
    assert 'aiflow_inflight{backend="x"} 5.0' in told
    both = kept(total, parsed(other.text()))
    assert 'aiflow_calls_total{model="a"} 5.0' in lines(merged({}, total=both, own={}))
