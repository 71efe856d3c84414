"""What one call costs each way: CPU time with many in flight, latency with one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import router_load
from router_backend import TYPED
from router_load import Result
from router_ways import KEY, Way
from tritonclient.grpc import service_pb2

INFER = "inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = 64

# Message size in bytes by its name, and how many calls of it make a measurement.
SIZES = {"100b": (100, 6000), "10kb": (10_000, 4000), "600kb": (600_000, 400)}
ALONE = 1500  # Calls one after the other.

Load = Callable[[Way, str, int, int, int], Result]
"""Sends to a way, by method: messages of a size, how many, and how many in flight."""


def load_with(h2load: Path, folder: Path) -> Load:
    def load(way: Way, method: str, size: int, count: int, in_flight: int) -> Result:
        url = f"http://{way.address}/{method}"
        return router_load.calls(
            h2load, url, [message(size)], count=count, in_flight=in_flight, key=KEY, folder=folder
        )

    return load


def message(size: int, model: str = "m") -> bytes:
    """A ModelInferRequest of exactly `size` bytes, most of it tensor."""
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[bytes(size)])
    request.raw_input_contents[0] = bytes(2 * size - request.ByteSize())
    return bytes(request.SerializeToString())


def one_round(ways: Mapping[str, Way], load: Load) -> dict[str, float]:
    """CPU time a call in microseconds, latencies of one call at a time in ms."""
    seen: dict[str, float] = {}
    for size_name, (size, count) in SIZES.items():
        for name, way in ways.items():
            if name != "direct":
                seen[f"{name}_cpu_us_{size_name}"] = cpu_us(load, way, INFER, size, count)
    size, count = SIZES["100b"]
    typed = f"{TYPED}/AnnotateDimensions"
    seen["typed_cpu_us_100b"] = cpu_us(load, ways["full"], typed, size, count)
    for name, way in ways.items():
        alone = load(way, INFER, size, ALONE, 1)
        seen[f"{name}_p50_ms"] = alone.percentile_ms(0.5)
        seen[f"{name}_p99_ms"] = alone.percentile_ms(0.99)
    return seen


def cpu_us(load: Load, way: Way, method: str, size: int, count: int) -> float:
    before_s = way.cpu_s()
    load(way, method, size, count, IN_FLIGHT)
    return (way.cpu_s() - before_s) / count * 1e6
