"""Our histograms tell a scrape what prometheus_client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from aiflow_router.telemetry.histograms import Histograms

BOUNDS_S = (0.001, 0.25, 1, 300)
SECONDS = st.one_of(st.sampled_from(BOUNDS_S), st.floats(0, 1000, allow_nan=False))


@given(st.lists(st.tuples(st.sampled_from("ab"), SECONDS)))
def test_a_scrape_reads_the_same_by_label(seen: list[tuple[str, float]]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    their = Histogram("h_seconds", "Help.", ("model",), buckets=BOUNDS_S, registry=theirs)
    our = Histograms("h_seconds", "Help.", BOUNDS_S, label="model")
    ours.register(our)
    for model, seconds in seen:
        their.labels(model).observe(seconds)
        our.labels(model).observe(seconds)
    assert generate_latest(ours) == generate_latest(theirs)


@given(st.lists(SECONDS))
def test_a_scrape_reads_the_same_without_a_label(seen: list[float]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    their = Histogram("h_seconds", "Help.", buckets=BOUNDS_S, registry=theirs)
    our = Histograms("h_seconds", "Help.", BOUNDS_S)
    ours.register(our)
    our.labels()
    for seconds in seen:
        their.observe(seconds)
        our.labels().observe(seconds)
    assert generate_latest(ours) == generate_latest(theirs)
