"""What batching brings, and what the router costs: `detector` with 32 callers.

    make bench

Three ways in turn, so that a slower moment of the machine meets all of them: through the router,
straight to the same Triton, and straight to a Triton whose models take one request at a time.
"""

from __future__ import annotations

import asyncio
import io
import statistics
from dataclasses import dataclass
from typing import Any

import grpc
import load
import report
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow_sdk import tensors
from aiflow_sdk.command.mesh import aiflow_part
from aiflow_sdk.command.processes import Supervisor
from aiflow_servers import places, weights

MODEL = "detector"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALLERS = 32
ROUNDS = 5
SECONDS = 6.0
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Addresses of the three ways to the same model."""

    router: str
    direct: str
    unbatched: str


def main() -> None:
    request = tensors.to_request(MODEL, {"image": photo()}).SerializeToString()
    with Supervisor(say=say) as supervisor:
        asyncio.run(measure(start(supervisor), request))


def photo() -> bytes:
    """A cup on a table, 600x400, as a camera would store it: a JPEG of 70 KB."""
    pictures = weights.ensure(group="pictures", cache=places.cache() / "pictures", report=print)
    encoded = io.BytesIO()
    with Image.open(pictures / "coffee.png") as image:
        image.convert("RGB").save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def say(part: str, line: str) -> None:
    if not line.startswith("{"):
        print(f"{part:>9}  {line}")


def start(supervisor: Supervisor) -> Ways:
    addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    router = supervisor.start([aiflow_part("router", ["router", *addresses])])["router"]["grpc"]
    triton = ["triton", "--model", MODEL]
    parts = [
        aiflow_part("batched", triton, {"AIFLOW_ROUTER": router}, ready_s=900),
        aiflow_part("unbatched", [*triton, "--no-batching", "--standalone"], ready_s=900),
    ]
    ready = supervisor.start(parts)
    return Ways(
        router=router, direct=ready["batched"]["grpc"], unbatched=ready["unbatched"]["grpc"]
    )


async def measure(ways: Ways, request: bytes) -> None:
    """Runs the three ways in turn and reports medians and ratios of the rounds."""
    for address in (ways.router, ways.unbatched):
        await load.closed_loop(address, METHOD, request, callers=CALLERS, seconds=WARM_UP_S)
    rounds: list[dict[str, float]] = []
    batches: list[float] = []
    for number in range(ROUNDS):
        seen: dict[str, float] = {}
        before = await counters(ways.direct)
        seen["router"] = await throughput(ways.router, request)
        after = await counters(ways.direct)
        batches.append((after[0] - before[0]) / (after[1] - before[1]))
        seen["direct"] = await throughput(ways.direct, request)
        seen["unbatched"] = await throughput(ways.unbatched, request)
        print(f"round {number + 1}:", *(f"{way} {rate:.0f}/s" for way, rate in seen.items()))
        rounds.append(seen)
    report.write(
        "batching",
        {
            "mean_batch": statistics.median(batches),
            "speedup_vs_unbatched": ratio(rounds, "router", "unbatched"),
            "share_of_direct": ratio(rounds, "router", "direct"),
            **{f"{way}_per_s": statistics.median(r[way] for r in rounds) for way in rounds[0]},
            "callers": CALLERS,
        },
        wanted={"mean_batch": ">= 4", "speedup_vs_unbatched": "> 1", "share_of_direct": ">= 0.9"},
    )


async def throughput(address: str, request: bytes) -> float:
    result = await load.closed_loop(address, METHOD, request, callers=CALLERS, seconds=SECONDS)
    if result.failed:
        raise SystemExit(f"{result.failed} calls to {address} failed; the figures would be wrong")
    return result.per_second


async def counters(address: str) -> tuple[int, int]:
    """Triton's own count of inferences and of executions of the model."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
        answer = await stub(channel).ModelStatistics(service_pb2.ModelStatisticsRequest(name=MODEL))
    return answer.model_stats[0].inference_count, answer.model_stats[0].execution_count


def ratio(rounds: list[dict[str, float]], one: str, other: str) -> float:
    return statistics.median(seen[one] / seen[other] for seen in rounds)


if __name__ == "__main__":
    main()
