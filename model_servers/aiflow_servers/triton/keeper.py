"""Keeps one Triton running and the router told of what it serves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import structlog

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.command.processes import Backoff
from aiflow_servers.runtime.registrar import Registrar
from aiflow_servers.runtime.registration import Registration
from aiflow_servers.triton.process import Launch, StartError, TritonProcess

BACKEND = "triton"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the keeper waits for what.

    Attributes:
        look_s: between two looks at the repository index.
        start_s: from the start of the process to its first answer.
        silent_s: a process that has not answered for so long is killed and started again.
        grace_s: how long calls may still arrive after saying that it drains.
        stop_s: what requests in flight get to finish.
        backoff: between a crash and the next start.
    """

    look_s: float = 0.25
    start_s: float = 180.0
    silent_s: float = 10.0
    grace_s: float = 0.5
    stop_s: float = 30.0
    backoff: Backoff = field(
        default_factory=lambda: Backoff(min_s=0.5, max_s=30.0, reset_after_s=60.0)
    )


class Keeper:
    """Runs Triton until closed: watches it, registers its ready models, restarts it after a crash.

    Where `registrar` is None it registers nowhere.

    Attributes:
        address: "host:port" of its gRPC now; another one after a restart if the port was not fixed.
        metrics_address: "host:port" of its Prometheus metrics.
        pid: of the server process; 0 between two runs.
        models: names of the models that are ready now.
        version: of Triton, as it says.
        restarts: how often it had to be started again.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        registrar: Registrar | None,
        weight: int = 1,
        zone: str = "",
        patience: Patience | None = None,
        on_ready: Callable[[Keeper], None] = lambda _: None,
    ) -> None:
        self._launch = launch
        self._registrar = registrar
        self._weight = weight
        self._zone = zone
        self._patience = patience or Patience()
        self._on_ready = on_ready
        self._process: TritonProcess | None = None
        self.address = self.metrics_address = ""
        self.pid = 0
        self.models: tuple[str, ...] = ()
        self.version = ""
        self.restarts = 0

    async def run(self) -> None:
        """Keeps Triton running until cancelled; ends by itself only if the first start fails.

        Raises:
            StartError: it never got ready. Later failures are retried for ever, with backoff.
        """
        crashes, was_ready = 0, False
        while True:
            started_s = time.monotonic()
            try:
                await self._run_once()
            except StartError as error:
                if not was_ready:
                    raise
                _log.error("triton did not start", problem=str(error))
            else:
                was_ready = True
            ran_s = time.monotonic() - started_s
            crashes = 1 if ran_s > self._patience.backoff.reset_after_s else crashes + 1
            wait_s = self._patience.backoff.wait_s(crashes)
            self.restarts += 1
            _log.warning("starting triton again", in_s=round(wait_s, 1), restarts=self.restarts)
            await asyncio.sleep(wait_s)

    def kill(self) -> None:
        """Ends the process now; `run` would start it again."""
        if self._process is not None:
            self._process.kill()

    async def _run_once(self) -> None:
        """One run of the process, from its start to its end."""
        process = await TritonProcess.start(self._launch)
        self._process, self.pid = process, process.pid
        self.address, self.metrics_address = process.address, process.metrics_address
        stop_s = 0.0  # after a crash there is nothing to wait for
        try:
            await self._started(process)
            async with self._registered(process.address) as registration:
                try:
                    await self._watch(process, registration)
                except asyncio.CancelledError:
                    stop_s = self._patience.stop_s
                    raise
        finally:
            self.models, self.pid, self._process = (), 0, None
            await asyncio.shield(process.stop(stop_s))

    async def _started(self, process: TritonProcess) -> None:
        """Returns when it answers; by then it has tried to load every model."""
        deadline_s = time.monotonic() + self._patience.start_s
        while True:
            if process.exit_code is not None:
                raise StartError(
                    f"triton ended with exit code {process.exit_code}:\n{process.last_lines()}"
                )
            with contextlib.suppress(grpc.aio.AioRpcError):
                self.models = tuple(await process.ready_models())
                failed = await process.failed_models()
                self.version = await process.version()
                break
            if time.monotonic() > deadline_s:
                raise StartError(
                    f"triton did not answer within {self._patience.start_s:g} s:"
                    f"\n{process.last_lines()}"
                )
            await process.ended(within_s=self._patience.look_s)
        for name, reason in failed.items():
            _log.error("model cannot be served", model=name, problem=reason)
        if not self.models:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise StartError(f"triton loaded no model: {reasons or process.last_lines()}")

    @contextlib.asynccontextmanager
    async def _registered(self, address: str) -> AsyncIterator[Registration | None]:
        """The models that are ready, in the router's catalog for the time of the block."""
        if self._registrar is None:
            yield None
            return
        endpoint = registry_pb2.Endpoint(
            backend=BACKEND,
            address=address,
            protocol=registry_pb2.PROTOCOL_OIP,
            models=self.models,
            weight=self._weight,
            zone=self._zone,
            version=self.version,
            device=self._launch.device,
        )
        registration = Registration(registrar=self._registrar, endpoint=endpoint)
        await registration.start()
        try:
            yield registration
        except asyncio.CancelledError:
            # Asked to stop: calls that are on their way still find it.
            await registration.drain()
            await asyncio.sleep(self._patience.grace_s)
            raise
        finally:
            await registration.close()

    async def _watch(self, process: TritonProcess, registration: Registration | None) -> None:
        """Returns when the process has ended, or had to be killed because it answers no more."""
        self._on_ready(self)
        answered_s = time.monotonic()
        while not await process.ended(within_s=self._patience.look_s):
            try:
                ready = tuple(await process.ready_models())
                answered_s = time.monotonic()
            except grpc.aio.AioRpcError as error:
                ready = ()
                silent_s = time.monotonic() - answered_s
                _log.warning(
                    "triton does not answer", for_s=round(silent_s, 1), code=error.code().name
                )
                if silent_s > self._patience.silent_s:
                    process.kill()
            if ready != self.models:
                _log.info("models", ready=ready, before=self.models)
                self.models = ready
                if registration is not None:
                    await registration.set_models(ready)
        _log.error("triton ended", exit_code=process.exit_code, log=str(self._launch.log))


@contextlib.asynccontextmanager
async def keeping(
    launch: Launch,
    *,
    registrar: Registrar | None,
    patience: Patience | None = None,
) -> AsyncIterator[Keeper]:
    """Triton with ready models for the time of the block.

    Raises:
        StartError: it did not get ready.
    """
    ready = asyncio.Event()
    keeper = Keeper(
        launch,
        registrar=registrar,
        patience=patience,
        on_ready=lambda _: ready.set(),
    )
    running = asyncio.create_task(keeper.run(), name="triton-keeper")
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        yield keeper
    finally:
        waiting.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await running
