"""What callers get of a backend that is asked for more than it can do, with a limit and without.

    make bench-overload

Calls come at random times at once, twice and four times the backend's capacity, whether earlier
ones are answered or not; each must be answered within a second. Goodput is the share of the
capacity that is answered in time. Each case has a backend and a model of its own, so an adaptive
limit begins to learn when the calls begin to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import report
from overload_backend import CAPACITY, SERVICE_S, SLOTS
from tritonclient.grpc import service_pb2

HERE = Path(__file__).parent
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = {
    "none": "{mode: off}",
    "fixed": f"{{limit: {2 * SLOTS}, queue: 64}}",
    "adaptive": "{limit: adaptive, queue: 64}",
}
LOADS = (1, 2, 4)
DEADLINE_S = 1.0
# Not counted: an adaptive limit learns, and a backend without one fills up.
WARM_S = 2.0
MEASURED_S = 3.0
HIGH_SHARE = 0.1


@dataclass(slots=True, kw_only=True)
class Seen:
    """What callers saw; `high` is of those with that priority."""

    latencies_ms: list[float] = field(default_factory=list)
    sent: int = 0
    high_sent: int = 0
    high_answered: int = 0
    refused: int = 0


def main() -> None:
    cases = [(name, load) for load in LOADS for name in LIMITS]
    figures: dict[str, Any] = {}
    with mesh([f"{name}-{load}" for name, load in cases]) as address:
        for name, load in cases:
            seen = asyncio.run(ask(address, f"{name}-{load}", rate=load * CAPACITY))
            figures |= figures_of(seen, f"{name}_{load}x")
            print(f"{name} at {load}x: {len(seen.latencies_ms)} of {seen.sent} answered in time")
    figures["service_ms"] = SERVICE_S * 1000
    report.write(
        "overload",
        figures,
        wanted={f"{name}_4x_goodput": ">= 0.9" for name in ("fixed", "adaptive")},
    )


def figures_of(seen: Seen, case: str) -> Mapping[str, float]:
    ordered = sorted(seen.latencies_ms)
    found = {
        f"{case}_goodput": len(ordered) / MEASURED_S / CAPACITY,
        f"{case}_high_answered": seen.high_answered / max(1, seen.high_sent),
        f"{case}_refused": seen.refused / max(1, seen.sent),
    }
    if ordered:
        found[f"{case}_p50_ms"] = ordered[len(ordered) // 2]
        found[f"{case}_p99_ms"] = ordered[int(0.99 * (len(ordered) - 1))]
    return found


@contextlib.contextmanager
def mesh(models: list[str]) -> Iterator[str]:
    """A router in front of one backend a model; its address."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        backend = [sys.executable, str(HERE / "overload_backend.py"), str(len(models))]
        addresses = json.loads(stack.enter_context(running(backend)))
        config = folder / "aiflow.yaml"
        endpoints = [
            f"{{backend: {model}, address: '{address}', protocol: oip, models: [{model}]}}"
            for model, address in zip(models, addresses, strict=True)
        ]
        routes = [
            f"{{match: {{model: {model}}}, overload: {LIMITS[model.partition('-')[0]]}}}"
            for model in models
        ]
        config.write_text(
            "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s, "
            "drain_timeout: 1s}\n"
            f"discovery: {{static: [{', '.join(endpoints)}]}}\n"
            f"routes: [{', '.join(routes)}]\n"
        )
        aiflow = Path(sys.executable).with_name("aiflow")
        command = [str(aiflow), "router", "--config", str(config)]
        log = stack.enter_context((folder / "access.log").open("wb"))
        yield json.loads(stack.enter_context(running(command, log=log.fileno())))["grpc"]


@contextlib.contextmanager
def running(command: list[str], *, log: int | None = None) -> Iterator[str]:
    """A process, by the line that it prints when it serves; stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        yield process.stdout.readline()
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def ask(address: str, model: str, *, rate: float) -> Seen:
    """Sends `rate` calls a second; what those saw that came after the warm-up."""
    rng, seen = random.Random(1), Seen()  # noqa: S311 - spreads calls
    request = service_pb2.ModelInferRequest(model_name=model).SerializeToString()
    started_s = time.perf_counter()
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(address, options=options) as channel,
        asyncio.TaskGroup() as group,
    ):
        call: Any = channel.unary_unary(INFER)

        async def one(priority: str, *, counted: bool) -> None:
            begun_s = time.perf_counter()
            metadata = (("x-aiflow-priority", priority),)
            try:
                await call(request, metadata=metadata, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as failure:
                seen.refused += counted and failure.code() is grpc.StatusCode.UNAVAILABLE
                return
            if counted:
                seen.latencies_ms.append((time.perf_counter() - begun_s) * 1000)
                seen.high_answered += priority == "high"

        due_s = started_s
        while due_s < started_s + WARM_S + MEASURED_S:
            # Behind its time the load catches up, so a busy machine gets no fewer calls.
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            high, counted = rng.random() < HIGH_SHARE, due_s >= started_s + WARM_S
            seen.sent += counted
            seen.high_sent += counted and high
            group.create_task(one("high" if high else "normal", counted=counted))
            due_s += rng.expovariate(rate)
    return seen


if __name__ == "__main__":
    main()
