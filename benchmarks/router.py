"""What the router costs, beside a bare Python pass-through, Envoy and nginx.

    make bench-router

One backend process echoes; each way to it is a process of its own, whose CPU time is read before
and after. The ways take turns in each round, so that a slower moment of the machine meets all, and
a ratio is the median of the rounds' ratios. The router runs as it would be run: keys required,
two limits, metrics, and an access log to a file. The others do no more than pass on.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import report
import router_peers
import router_scale
import router_streams
import router_unary
from router_unary import IN_FLIGHT, INFER
from router_ways import start

ROUNDS = 3
POLICY = "`full` is the router with keys required, two limits, metrics, an access log and a gate"

WANTED = {
    "full_vs_bare_cpu_100b": "<= 1.25",
    "many_endpoints_cost_ratio": "<= 1.1",
    "swap_stall_ms": "<= 10",
}


def main() -> None:
    began_s = time.monotonic()
    h2load = router_peers.h2load()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ways = start(stack, folder)
        memory = router_streams.memory(ways)
        load = router_unary.load_with(h2load, folder)
        for way in ways.values():
            load(way, INFER, 100, 500, IN_FLIGHT)  # Warm, and really answering.
        rounds: list[dict[str, float]] = [{} for _ in range(ROUNDS)]
        for number, seen in enumerate(rounds, 1):
            seen.update(router_unary.one_round(ways, load))
            tell(f"round {number}, calls", seen, "cpu_us")
            seen.update(router_streams.one_round(ways, h2load, folder))
            tell(f"round {number}, streams", seen, "stream")
    with router_scale.started() as ways:
        for number, seen in enumerate(rounds, 1):
            scale = router_scale.one_round(ways)
            tell(f"round {number}, scale", scale, "")
            seen.update(scale)
    print(f"measured for {time.monotonic() - began_s:.0f} s. {POLICY}.")
    report.write("router", {**summary(rounds), **memory}, wanted=WANTED)


def tell(what: str, seen: dict[str, float], part: str) -> None:
    shown = (f"{name} {value:.0f}" for name, value in seen.items() if part in name)
    print(f"{what}:", *shown, flush=True)


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians, ratios first; those of a peer that was left out are missing."""
    figures: dict[str, float] = {}
    for key, over, under in (
        ("full_vs_bare_cpu_100b", "full_cpu_us_100b", "bare_cpu_us_100b"),
        ("typed_vs_bare_cpu_100b", "typed_cpu_us_100b", "bare_cpu_us_100b"),
        *(
            (f"full_vs_envoy_cpu_{size}", f"full_cpu_us_{size}", f"envoy_cpu_us_{size}")
            for size in router_unary.SIZES
        ),
        ("full_vs_nginx_cpu_100b", "full_cpu_us_100b", "nginx_cpu_us_100b"),
        ("full_vs_bare_stream_cpu", "full_stream_cpu_us", "bare_stream_cpu_us"),
        ("many_endpoints_cost_ratio", "many_endpoints_cpu_us", "few_endpoints_cpu_us"),
        ("many_same_connections_ratio", "many_same_connections_cpu_us", "few_endpoints_cpu_us"),
        (
            "bare_many_connections_ratio",
            "bare_many_cpu_us",
            "bare_few_cpu_us",
        ),
    ):
        if over in rounds[0] and under in rounds[0]:
            figures[key] = statistics.median(seen[over] / seen[under] for seen in rounds)
    for key, name, share in (
        ("added_p50_ms", "full", "p50"),
        ("added_p99_ms", "full", "p99"),
        ("envoy_added_p50_ms", "envoy", "p50"),
    ):
        with_it, without = f"{name}_{share}_ms", f"direct_{share}_ms"
        if with_it in rounds[0]:
            figures[key] = statistics.median(seen[with_it] - seen[without] for seen in rounds)
    return figures | {name: statistics.median(seen[name] for seen in rounds) for name in rounds[0]}


if __name__ == "__main__":
    main()
