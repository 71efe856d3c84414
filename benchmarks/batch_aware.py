"""When filling one Triton's batch before the next one's pays: three strategies on three Tritons.

    make bench-balance
    .venv/bin/python benchmarks/batch_aware.py --queue-delay-ms 20   # Triton waits for more calls

The model waits 40 ms for an execution and 0.5 ms more for each item in it, and computes nothing.
That stands for a GPU's cost curve, on which a batch costs hardly more than one item; it uses no
CPU, so that three of them run undisturbed beside their callers. What it cannot show is a real
model's time. Executions a second times 40 ms is the share of its GPU that a Triton keeps busy.

Each strategy has a model of its own, the same in all but name, at the same Tritons through the
same router. They take turns in each round, at four loads: calls that come at random (the same
moments for all three), and as many callers at once as keep every Triton full.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import load
import numpy as np
import report
from load import Result
from rich.console import Console
from rich.table import Column, Table
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow_sdk import tensors
from aiflow_sdk.command.mesh import aiflow_part
from aiflow_sdk.command.processes import Supervisor

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STRATEGIES = ("round_robin", "least_request", "batch_aware")
TRITONS = 3
MAX_BATCH = 8
EXECUTION_S = 0.040
ITEM_S = 0.0005
AIM_S = 0.2
ROUNDS = 3
SECONDS = 2.0

# A Triton that always runs full batches answers this many calls a second.
CAPACITY_PER_S = MAX_BATCH / (EXECUTION_S + MAX_BATCH * ITEM_S)
# Calls a second by the name of the load, as shares of what all Tritons can do.
OPEN = {"low": 0.02, "medium": 0.2, "high": 0.5}
# While every Triton runs one full batch another one waits.
FULL_CALLERS = TRITONS * MAX_BATCH * 2

CONFIG_PBTXT = f"""\
backend: "python"
max_batch_size: {MAX_BATCH}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: %d }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

MODEL_PY = f"""\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        items = sum(len(tensor.as_numpy()) for tensor in tensors)
        time.sleep({EXECUTION_S} + {ITEM_S} * items)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor.as_numpy())])
            for tensor in tensors
        ]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One strategy under one load."""

    per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch: float
    executions_per_s: float
    failed: int

    def busy(self) -> float:
        """Share of the time that the Tritons' GPUs would be busy."""
        return self.executions_per_s * (EXECUTION_S + self.mean_batch * ITEM_S) / TRITONS


Round = Mapping[tuple[str, str], Seen]
"""By load and strategy."""

FIGURES: Mapping[str, Callable[[Seen], float]] = {
    "per_s": lambda seen: seen.per_s,
    "p50_ms": lambda seen: seen.p50_ms,
    "p99_ms": lambda seen: seen.p99_ms,
    "batch": lambda seen: seen.mean_batch,
    "exec_per_s": lambda seen: seen.executions_per_s,
    "busy": Seen.busy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue-delay-ms", type=int, default=0)
    delay_ms: int = parser.parse_args().queue_delay_ms
    with tempfile.TemporaryDirectory() as name, Supervisor(say=say) as supervisor:
        router, tritons = start(supervisor, Path(name), delay_ms)
        rounds = asyncio.run(measure(router, tritons))
    summary(rounds, f"batch_aware_delay_{delay_ms}ms" if delay_ms else "batch_aware")


def say(part: str, line: str) -> None:
    if not line.startswith("{"):
        print(f"{part:>9}  {line}")


def start(supervisor: Supervisor, folder: Path, delay_ms: int) -> tuple[str, Sequence[str]]:
    repository = folder / "repository"
    for strategy in STRATEGIES:
        (repository / strategy / "1").mkdir(parents=True)
        (repository / strategy / "config.pbtxt").write_text(CONFIG_PBTXT % (1000 * delay_ms))
        (repository / strategy / "1" / "model.py").write_text(MODEL_PY)
    triton = ["triton", "--standalone", "--repository", str(repository)]
    parts = [aiflow_part(f"triton-{n}", triton, ready_s=900) for n in range(TRITONS)]
    tritons = [said["grpc"] for said in supervisor.start(parts).values()]
    config = folder / "aiflow.yaml"
    config.write_text(_config(tritons))
    router = supervisor.start([aiflow_part("router", ["router", "--config", str(config)])])
    return router["router"]["grpc"], tritons


def _config(tritons: Sequence[str]) -> str:
    models = ", ".join(STRATEGIES)
    endpoints = "\n".join(
        f"    - {{backend: triton, address: '{address}', protocol: oip, models: [{models}]}}"
        for address in tritons
    )
    routes = "\n".join(
        f"  - {{match: {{model: {strategy}}}, balance: {strategy}{aim}}}"
        for strategy in STRATEGIES
        for aim in [f", latency_aim: {AIM_S:g}s" if strategy == "batch_aware" else ""]
    )
    return (
        "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}\n"
        f"discovery:\n  static:\n{endpoints}\nroutes:\n{routes}\n"
    )


async def measure(router: str, tritons: Sequence[str]) -> Sequence[Round]:
    rounds: list[Round] = []
    async with AsyncExitStack() as stack:
        stubs = []
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
        for address in tritons:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stubs.append(stub(channel))
        for strategy in STRATEGIES:  # Warm, and really answering.
            await load.closed_loop(router, METHOD, _request(strategy), callers=24, seconds=0.5)
        for number in range(ROUNDS):
            rounds.append(await one_round(router, stubs, number))
            print(f"round {number + 1} of {ROUNDS}")
    return rounds


async def one_round(router: str, stubs: Sequence[Any], number: int) -> Round:
    seen: dict[tuple[str, str], Seen] = {}
    for name in (*OPEN, "full"):
        turn = number % len(STRATEGIES)
        for strategy in (*STRATEGIES[turn:], *STRATEGIES[:turn]):
            request = _request(strategy)
            before = await counters(stubs, strategy)
            if name == "full":
                result = await load.closed_loop(
                    router, METHOD, request, callers=FULL_CALLERS, seconds=SECONDS
                )
            else:
                rate = OPEN[name] * TRITONS * CAPACITY_PER_S
                result = await open_loop(router, request, per_s=rate, seed=number)
            after = await counters(stubs, strategy)
            items, executions = after[0] - before[0], after[1] - before[1]
            seen[name, strategy] = Seen(
                per_s=result.per_second,
                p50_ms=result.percentile_ms(0.5),
                p99_ms=result.percentile_ms(0.99),
                mean_batch=items / executions,
                executions_per_s=executions / result.seconds,
                failed=result.failed,
            )
    return seen


def _request(model: str) -> bytes:
    request = tensors.to_request(model, {"x": np.ones((1, 1), np.float32)})
    return bytes(request.SerializeToString())


async def open_loop(address: str, request: bytes, *, per_s: float, seed: int) -> Result:
    """Calls at random moments, `per_s` on average, whether or not earlier ones were answered."""
    result, rng = Result(), random.Random(seed)  # noqa: S311 - the same moments for all
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        call: Any = channel.unary_unary(METHOD)

        async def one() -> None:
            begun = time.perf_counter()
            try:
                await call(request, timeout=30)
            except grpc.RpcError:
                result.failed += 1
            else:
                result.latencies_ms.append((time.perf_counter() - begun) * 1000)

        started = due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.expovariate(per_s)) < started + SECONDS:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one())
        result.seconds = time.perf_counter() - started
    return result


async def counters(stubs: Sequence[Any], model: str) -> tuple[int, int]:
    """The Tritons' own counts of inferences and of executions of the model."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    answers = [(await stub.ModelStatistics(request)).model_stats[0] for stub in stubs]
    return (
        sum(answer.inference_count for answer in answers),
        sum(answer.execution_count for answer in answers),
    )


def summary(rounds: Sequence[Round], file: str) -> None:
    """Prints and writes medians, ratios to least_request, and when batch_aware helped."""
    failed = sum(seen.failed for round_ in rounds for seen in round_.values())
    if failed:
        raise SystemExit(f"{failed} calls failed; the figures would be wrong")

    def median(name: str, figure: Callable[[Mapping[str, Seen]], float]) -> float:
        """Of the rounds, what `figure` makes of the strategies under one load."""
        return statistics.median(
            figure({strategy: round_[name, strategy] for strategy in STRATEGIES})
            for round_ in rounds
        )

    figures: dict[str, Any] = {}
    table = Table("load", Column("strategy", no_wrap=True), *FIGURES, box=None)
    loads: dict[str, dict[str, dict[str, float]]] = {}
    helps = []
    for name in (*OPEN, "full"):
        loads[name] = {
            strategy: {
                figure: median(name, lambda seen, s=strategy, f=of: f(seen[s]))  # type: ignore[misc]
                for figure, of in FIGURES.items()
            }
            for strategy in STRATEGIES
        }
        for strategy, shown in loads[name].items():
            table.add_row(name, strategy, *(f"{value:.3g}" for value in shown.values()))
        for figure, of in FIGURES.items():
            figures[f"{name}_{figure}_vs_least_request"] = median(
                name,
                lambda seen, f=of: f(seen["batch_aware"]) / f(seen["least_request"]),  # type: ignore[misc]
            )
        saves = figures[f"{name}_exec_per_s_vs_least_request"] <= 0.8
        if saves and figures[f"{name}_per_s_vs_least_request"] >= 0.95:
            helps.append(name)
    slowest_ms = max(loads[name]["batch_aware"]["p99_ms"] for name in OPEN)
    figures |= {"batch_aware_p99_ms": slowest_ms, "aim_ms": AIM_S * 1000, "loads": loads}
    figures["verdict"] = (
        f"batch_aware helps when the load is {' or '.join(helps) or 'none of these'}: a fifth "
        f"fewer executions at least for the same calls a second; its worst p99 is "
        f"{slowest_ms:.0f} ms, the aim {AIM_S * 1000:.0f} ms"
    )
    Console().print(table)
    report.write(
        file,
        figures,
        wanted={
            "low_p50_ms_vs_least_request": "<= 1.2",
            "medium_exec_per_s_vs_least_request": "<= 0.8",
            "full_per_s_vs_least_request": ">= 0.95",
            "batch_aware_p99_ms": f"<= {AIM_S * 1000:.0f}",
        },
    )
    print(figures["verdict"])


if __name__ == "__main__":
    main()
