"""One run of the Triton server process: started, asked what is ready, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow_sdk.command import tied
from aiflow_servers.triton.install import Installation, interpreter_library

_ASK_S = 2.0
_LAST_LINES = 12


class StartError(Exception):
    """Triton did not get ready; the message says why, with the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How Triton is run."""

    installation: Installation
    repository: Path
    models: Sequence[str]
    weights: Path
    """Folder with the models' weights."""
    log: Path
    """File that Triton's output is appended to."""
    device: str = "cpu"
    """What the models run on, for operators to read."""
    host: str = "127.0.0.1"
    grpc_port: int = 0
    """0 takes a free one."""
    metrics_port: int = 0
    exit_timeout_s: int = 30
    """What requests in flight get to finish when it is stopped."""


class TritonProcess:
    """A running tritonserver.

    Attributes:
        address: "host:port" of its gRPC.
        metrics_address: "host:port" of its Prometheus metrics.
        pid: its process.
    """

    def __init__(
        self, launch: Launch, process: asyncio.subprocess.Process, ports: tuple[int, int]
    ) -> None:
        self._launch = launch
        self._process = process
        # One for all who wait: asyncio keeps each wait, given up or not, until the process ends.
        self._ended = asyncio.create_task(process.wait())
        self.pid = process.pid
        self.address = f"{launch.host}:{ports[0]}"
        self.metrics_address = f"{launch.host}:{ports[1]}"
        self._channel = grpc.aio.insecure_channel(
            self.address, [("grpc.max_reconnect_backoff_ms", 500)]
        )
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
        self._triton = stub(self._channel)

    @classmethod
    async def start(cls, launch: Launch) -> Self:
        """Starts the process; it is not ready yet.

        Raises:
            StartError: it could not listen where it is told to.
        """
        ports = _ports(launch)
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        with launch.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                # Ends with this process, even when that is killed.
                *(sys.executable, "-I", "-S", tied.__file__, str(os.getpid())),
                *_command(launch, *ports),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(launch),
                start_new_session=True,
            )
        return cls(launch, process, ports)

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    async def ended(self, *, within_s: float) -> bool:
        """Whether it has, once it has or the time is over."""
        await asyncio.wait((self._ended,), timeout=within_s)
        return self.exit_code is not None

    async def ready_models(self) -> list[str]:
        """Names of the models that take requests now.

        Raises:
            grpc.aio.AioRpcError: it does not answer.
        """
        request = service_pb2.RepositoryIndexRequest(ready=True)
        index = await self._triton.RepositoryIndex(request, timeout=_ASK_S)
        return sorted({model.name for model in index.models if model.state == "READY"})

    async def version(self) -> str:
        """Triton's own, such as "2.51.0"."""
        told = await self._triton.ServerMetadata(
            service_pb2.ServerMetadataRequest(), timeout=_ASK_S
        )
        return str(told.version)

    async def failed_models(self) -> dict[str, str]:
        """Why models could not be loaded, by name."""
        index = await self._triton.RepositoryIndex(
            service_pb2.RepositoryIndexRequest(), timeout=_ASK_S
        )
        failed = {
            model.name: model.reason for model in index.models if model.state == "UNAVAILABLE"
        }
        return {name: failed[name] for name in self._launch.models if failed.get(name)}

    def last_lines(self) -> str:
        """The end of what Triton wrote, to explain a failure."""
        with self._launch.log.open(errors="replace") as log:
            return "".join(deque(log, maxlen=_LAST_LINES)).strip()

    async def stop(self, within_s: float) -> None:
        """Asks it to finish what it has, and kills it and its helpers if that takes too long."""
        await self._channel.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            await self.ended(within_s=within_s)
        self.kill()
        await asyncio.wait((self._ended,))

    def kill(self) -> None:
        """Ends it and the processes its models run in, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _ports(launch: Launch) -> tuple[int, int]:
    """Ports for gRPC and metrics that are free now: those asked for, or any.

    Triton cannot be told to take a free one by itself, and names a taken one only in its log.
    """
    with socket.socket() as grpc_probe, socket.socket() as metrics_probe:
        return (
            _claim(grpc_probe, launch.host, launch.grpc_port, "--grpc-port"),
            _claim(metrics_probe, launch.host, launch.metrics_port, "--metrics-port"),
        )


def _claim(probe: socket.socket, host: str, wanted: int, option: str) -> int:
    if wanted:  # connections of the run before, still closing, do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, wanted))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        remedy = f"Give another --host or {option}"
        if error.errno == errno.EADDRINUSE:
            remedy = f"Stop what uses it, or give another {option} (0 takes a free one)"
        raise StartError(f"cannot listen on {host}:{wanted}: {why}. {remedy}") from error
    port: int = probe.getsockname()[1]
    return port


def _command(launch: Launch, grpc_port: int, metrics_port: int) -> list[str]:
    server = launch.installation.server
    return [
        str(server / "bin/tritonserver"),
        f"--model-repository={launch.repository}",
        f"--backend-directory={server / 'backends'}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in launch.models),
        # A model that cannot be loaded must not take the others down.
        "--exit-on-error=false",
        # Nor may its grpc.health.v1, which would say NOT_SERVING of all of them; which models are
        # ready is what the repository index tells.
        "--strict-readiness=false",
        "--allow-http=false",
        f"--grpc-address={launch.host}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={launch.host}",
        f"--metrics-port={metrics_port}",
        f"--exit-timeout-secs={launch.exit_timeout_s}",
        # The router pings an idle connection; Triton's default would close it for that.
        "--grpc-keepalive-permit-without-calls=true",
        "--grpc-http2-max-pings-without-data=0",
        "--grpc-http2-min-recv-ping-interval-without-data=5000",
        "--grpc-http2-max-ping-strikes=0",
    ]


def _environment(launch: Launch) -> dict[str, str]:
    """What Triton and the processes of its models see: their own packages, and no others."""
    environment = launch.installation.environment
    libraries = [str(launch.installation.libraries)]
    if (interpreter := interpreter_library()) is not None:
        libraries.append(str(interpreter))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {
        **inherited,
        "LD_LIBRARY_PATH": ":".join(libraries),
        # How the interpreter inside Triton finds the virtual environment; it ignores PYTHONPATH.
        "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', '')}",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "AIFLOW_WEIGHTS": str(launch.weights),
    }
