"""What a call costs in the router, beside a bare Python pass-through, Envoy and nginx.

    make bench-router

One backend process echoes; each way to it is a process of its own, whose CPU time is read before
and after. The ways take turns in each round, so that a slower moment of the machine meets all.
The router runs as it would be run: keys required, metrics, and an access log to a file. The
others do no more than pass on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import report
import router_load
import router_peers
from router_backend import TYPED
from router_load import Result
from tritonclient.grpc import service_pb2

HERE = Path(__file__).parent
KEY = "benchmark"
INFER = "inference.GRPCInferenceService/ModelInfer"
ROUNDS = 3
IN_FLIGHT = 64
READY_S = 20.0

# Message size in bytes by its name, and how many calls of it make a measurement.
SIZES = {"100b": (100, 6000), "10kb": (10_000, 4000), "600kb": (600_000, 400)}
ALONE = 1500  # Calls one after the other.

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
auth: {{mode: required, keys: [{{name: bench, tenant: bench, sha256: {digest}}}]}}
discovery:
  static:
    - {{backend: oip, address: '{backend}', protocol: oip, models: [m]}}
    - {{backend: typed, address: '{backend}', protocol: grpc, services: [{typed}]}}
"""


Load = Callable[["Way", str, int, int, int], Result]
"""Sends to a way, by method: messages of a size, how many, and how many in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to the backend, and the process whose CPU time is its price."""

    address: str
    process: psutil.Process

    def cpu_s(self) -> float:
        spent = self.process.cpu_times()
        return spent.user + spent.system


def main() -> None:
    h2load = router_peers.h2load()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ways = start(stack, folder)

        def load(way: Way, method: str, size: int, count: int, in_flight: int) -> Result:
            url = f"http://{way.address}/{method}"
            request = message(size)
            return router_load.calls(
                h2load, url, request, count=count, in_flight=in_flight, key=KEY, folder=folder
            )

        for way in ways.values():
            load(way, INFER, 100, 500, IN_FLIGHT)  # Warm, and really answering.
        rounds = []
        for number in range(ROUNDS):
            rounds.append(one_round(ways, load))
            shown = {name: value for name, value in rounds[-1].items() if "cpu_us" in name}
            print(f"round {number + 1}:", *(f"{name} {value:.0f}" for name, value in shown.items()))
    figures = summary(rounds)
    report.write("router", figures, wanted={"full_vs_bare_cpu_100b": "<= 1.25"})


def start(stack: contextlib.ExitStack, folder: Path) -> Mapping[str, Way]:
    """Starts everything; the stack stops it."""
    python = [sys.executable]
    backend = stack.enter_context(running([*python, str(HERE / "router_backend.py")]))
    ways = {
        "direct": backend,
        "bare": stack.enter_context(
            running([*python, str(HERE / "passthrough.py"), backend.address])
        ),
        "full": stack.enter_context(full(folder, backend.address)),
    }
    if envoy := router_peers.envoy():
        port = free_port()
        config = folder / "envoy.yaml"
        config.write_text(router_peers.envoy_config(port=port, backend=backend.address))
        quiet = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
        ways["envoy"] = stack.enter_context(
            running([str(envoy), "-c", str(config), *quiet], port=port)
        )
    if nginx := router_peers.nginx():
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(
            router_peers.nginx_config(port=port, backend=backend.address, folder=folder)
        )
        ways["nginx"] = stack.enter_context(
            running([str(nginx), "-p", str(folder), "-c", str(config)], port=port)
        )
    return ways


@contextlib.contextmanager
def full(folder: Path, backend: str) -> Iterator[Way]:
    """The router with its policies on."""
    config = folder / "aiflow.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    config.write_text(CONFIG.format(digest=digest, backend=backend, typed=TYPED))
    aiflow = Path(sys.executable).with_name("aiflow")
    with (folder / "access.log").open("wb") as log:
        command = [str(aiflow), "router", "--config", str(config)]
        with running(command, log=log.fileno()) as way:
            yield way


@contextlib.contextmanager
def running(command: list[str], *, port: int = 0, log: int | None = None) -> Iterator[Way]:
    """A process that prints its address, or listens on `port`; stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if port:
            address = f"127.0.0.1:{port}"
            until_listening(process, port)
        else:
            line = process.stdout.readline().strip()
            address = json.loads(line)["grpc"] if line.startswith("{") else line
        yield Way(address=address, process=psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_listening(process: subprocess.Popen[str], port: int) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def message(size: int) -> bytes:
    """A ModelInferRequest of exactly `size` bytes, most of it tensor."""
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
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


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the run; those of a peer that was left out are missing."""

    def median(figure: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(figure(seen) for seen in rounds)

    figures: dict[str, float] = {}
    for one, other, size in (
        ("full", "bare", "100b"),
        ("typed", "bare", "100b"),
        *(("full", "envoy", size) for size in SIZES),
        ("full", "nginx", "100b"),
    ):
        over, under = f"{one}_cpu_us_{size}", f"{other}_cpu_us_{size}"
        if under in rounds[0]:
            figures[f"{one}_vs_{other}_cpu_{size}"] = median(
                lambda seen, over=over, under=under: seen[over] / seen[under]  # type: ignore[misc]
            )
    for key, name, share in (
        ("added_p50_ms", "full", "p50"),
        ("added_p99_ms", "full", "p99"),
        ("envoy_added_p50_ms", "envoy", "p50"),
    ):
        with_it, without = f"{name}_{share}_ms", f"direct_{share}_ms"
        if with_it in rounds[0]:
            figures[key] = median(
                lambda seen, one=with_it, other=without: seen[one] - seen[other]  # type: ignore[misc]
            )
    return figures | {name: median(lambda seen, name=name: seen[name]) for name in rounds[0]}  # type: ignore[misc]


if __name__ == "__main__":
    main()
