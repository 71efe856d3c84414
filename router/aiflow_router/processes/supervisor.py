"""`aiflow router` where `listen.workers` is more than 1: one catalog, one view, N workers.

No call passes through this process. It has the catalog and the HTTP side; calls go from the kernel
to the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from aiflow_router import parts, storing
from aiflow_router.balancing.census import served
from aiflow_router.catalog import consul
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.config.config import Config
from aiflow_router.config.file import ConfigError, parse_policy
from aiflow_router.policy.file import File
from aiflow_router.policy.keeping import Watched, keeping, of_the_file
from aiflow_router.policy.policies import Policies
from aiflow_router.processes import merge
from aiflow_router.processes.address import reserved
from aiflow_router.processes.child import Child, ChildError, Listening, started
from aiflow_router.processes.owner import Owner
from aiflow_router.processes.pool import Pool
from aiflow_router.processes.worker import SUPERVISOR_SOCKET
from aiflow_router.rpc import http
from aiflow_router.rpc.server import AddressInUseError, in_use_grpc, listen_http
from aiflow_router.rpc.tls import CertificateError, server_credentials
from aiflow_router.storage.database import StorageError
from aiflow_router.telemetry.discovery import AGE, DiscoveryAtScrape
from aiflow_router.telemetry.policy import watch_store
from aiflow_sdk.consul import ConsulRefusedError

_log = structlog.get_logger(__name__)

_FORCED_EXIT = 130
# Linux allows 107 bytes for the name of a Unix socket.
LONGEST_FOLDER = 80


async def supervise(
    config: Config, *, watched: Watched, listening: Callable[[str, str], None]
) -> str:
    """Serves until a signal; what was wrong, or empty.

    SIGHUP replaces the workers by ones with the configuration in the file. `listening` takes
    the addresses, gRPC and HTTP, when all workers serve.
    """
    try:
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiflow-")))
            if len(str(folder)) > LONGEST_FOLDER:
                return (
                    f"{folder} is too long for Unix sockets in it: set TMPDIR to a folder with a "
                    "shorter name"
                )
            if config.listen.tls is not None:
                server_credentials(config.listen.tls)  # Rather told here than by each worker.
            try:
                address = stack.enter_context(reserved(config.listen.grpc))
            except OSError as error:
                raise in_use_grpc(config.listen.grpc, error) from None
            supervisor = Supervisor(config, watched=watched, folder=folder, address=address)
            await stack.enter_async_context(supervisor.running(listening))
            return await supervisor.until_told()
    except (
        AddressInUseError,
        CertificateError,
        ChildError,
        ConsulRefusedError,
        StorageError,
    ) as error:
        return str(error)


class Supervisor:
    """Lives in one event loop, and has its signals."""

    def __init__(self, config: Config, *, watched: Watched, folder: Path, address: str) -> None:
        self._config = config
        self._watched = watched
        self._file: File | None = None
        self._folder = folder
        self._address = address
        self._files = 0
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._catalog = parts.catalog(config)
        self._discovery: consul.Discovery | None = None
        self._pool = Pool(
            start=partial(started, folder=folder, listening=Listening()),
            config=self._written(config),
            ended=self._ended,
        )
        self._counted: merge.Families = {}
        self._last_words: list[str] = []
        self._scrape = asyncio.Lock()
        self._metrics = _Metrics(self._catalog, self._pool)
        self._policies = Policies(
            of_the_file(config, origin=str(watched.path), since_s=time.time()),
            refused=self._metrics.load_errors.inc,
        )

    @contextlib.asynccontextmanager
    async def running(self, listening: Callable[[str, str], None]) -> AsyncIterator[None]:
        """Workers, catalog and HTTP side, until the block ends.

        Raises ChildError, ConsulRefusedError and StorageError.
        """
        self._take_signals()
        pool = self._pool
        app = http.application(
            ready=lambda: bool(pool.serving()) and not self._stop.is_set(),
            known=lambda: self._discovery is None or self._discovery.known,
            report=self._report,
            metrics=self._text,
        )
        async with contextlib.AsyncExitStack() as stack:
            # Before any worker opens it: the schema is brought up to date once.
            engine = await stack.enter_async_context(storing.storage(self._config, first=True))
            stack.callback(self._catalog.close)
            await self._discover(stack)
            await self._catalog.settled()
            kept = await stack.enter_async_context(
                keeping(self._policies, running=lambda: self._config, watched=self._watched)
            )
            self._file = kept.file
            if (store := kept.store) is not None:
                self._metrics.keeps_policy(lambda: store.age_s)
            owner = Owner(
                self._catalog, kept.desk, engine, lambda: [*pool.serving(), *pool.leaving()]
            )
            await stack.enter_async_context(owner.listening(self._folder / SUPERVISOR_SOCKET))
            http_address = await listen_http(stack, app, self._config.listen.http)
            # Workers go first: until then they have their catalog.
            stack.push_async_callback(self._stop_workers)
            await pool.fill(self._config.listen.workers)
            listening(self._address, http_address)
            yield

    async def _discover(self, stack: contextlib.AsyncExitStack) -> None:
        if self._config.discovery.consul is not None:
            settings = self._config.discovery.consul.settings()
            self._discovery = await stack.enter_async_context(
                consul.discovering(settings, self._catalog)
            )
            self._metrics.discovers(self._discovery)

    def _report(self) -> dict[str, Any]:
        """For `/readyz`."""
        return {
            **served(self._catalog.snapshot),
            "workers": len(self._pool.serving()),
            **({} if self._discovery is None else {"discovery": self._discovery.report()}),
        }

    async def until_told(self) -> str:
        """Until a signal to stop, or until workers cannot be kept alive: then why."""
        reloading = asyncio.create_task(self._reloads())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait(
            (stopped, reloading, self._pool.failed), return_when=asyncio.FIRST_COMPLETED
        )
        if reloading.done():
            reloading.result()  # It ends by itself only where it failed.
        reloading.cancel()
        stopped.cancel()
        await asyncio.wait((reloading, stopped))
        return self._pool.failed.result() if self._pool.failed.done() else ""

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def on_stop() -> None:
            if self._stop.is_set():
                self._pool.kill()
                shutil.rmtree(self._folder, ignore_errors=True)
                os._exit(_FORCED_EXIT)
            self._stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)

    async def _stop_workers(self) -> None:
        self._stop.set()
        listen = self._config.listen
        _log.info("draining", workers=len(self._pool.serving()))
        await self._pool.stop(within_s=listen.drain_grace + listen.drain_timeout)

    async def _reloads(self) -> None:
        """One reload after the other; signals that come meanwhile make one more."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                config = self._reread()
                _log.info("reloading", workers=config.listen.workers)
                await self._pool.roll(
                    self._written(config),
                    count=config.listen.workers,
                    begins=partial(self._take, config),
                )
            except ConfigError as error:
                self._metrics.load_errors.inc()
                _log.error("reload refused: the old configuration stays", problems=error.problems)
            except ChildError as error:
                self._metrics.load_errors.inc()
                _log.error("reload refused: a new worker does not start", error=str(error))
            else:
                self._metrics.reloads.inc()
                _log.info("reloaded")

    def _reread(self) -> Config:
        """Raises ConfigError, also for what cannot change while the router runs."""
        new, old = self._watched.read(), self._config
        fixed = {
            "listen.grpc": (old.listen.grpc, new.listen.grpc),
            "listen.http": (old.listen.http, new.listen.http),
            "discovery.embedded": (old.discovery.embedded, new.discovery.embedded),
            "discovery.consul": (old.discovery.consul, new.discovery.consul),
            "policy": (old.policy, new.policy),
            "storage": (old.storage, new.storage),
        }
        changed = [key for key, (before, after) in fixed.items() if before != after]
        if changed:
            raise ConfigError(
                [f"{key} cannot change by a reload: restart the router" for key in changed]
            )
        if (now := self._policies.current).source != "file":
            # Its limits may need the Redis, or the one worker, that the new file takes away.
            parse_policy(now.text, file=f"policy {now.version} in force", running=new)
        return new

    def _take(self, config: Config) -> None:
        self._config = config
        if self._file is not None:
            # What it could not take of a file that differs elsewhere too it can take now.
            self._file.look_again()
        self._catalog.list_static(item.endpoint() for item in config.discovery.static)

    def _written(self, config: Config) -> Path:
        """A file for workers: what was checked, whatever happens to the one it came from."""
        self._files += 1
        listen = config.listen.model_copy(update={"grpc": self._address})
        path = self._folder / f"config-{self._files}.json"
        path.touch(mode=0o600)
        path.write_text(
            config.model_copy(update={"listen": listen}).model_dump_json(exclude_unset=True)
        )
        return path

    def _ended(self, child: Child, *, died: bool) -> None:
        if died:
            self._metrics.deaths.inc()
        self._last_words.append(child.heard)

    async def _text(self) -> bytes:
        """Everybody's metrics; those of a worker that ends meanwhile are counted once."""
        async with self._scrape:
            children = [*self._pool.serving(), *self._pool.leaving()]
            await asyncio.gather(*(child.metrics() for child in children))
            living = {child.label(): child.heard for child in children if not child.ended.is_set()}
            last_words, self._last_words = self._last_words, []
            # Thousands of models are many lines, and leases must be renewed meanwhile.
            text, self._counted = await asyncio.to_thread(
                merge.told, living, last_words, total=self._counted, own=self._metrics.text()
            )
        return text


class _Metrics:
    """What the supervisor itself has to say."""

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.load_errors = Counter(
            "aiflow_config_load_errors",
            "Configurations that were refused since the start.",
            registry=registry,
        )
        self.reloads = Counter(
            "aiflow_reloads", "Reloads that replaced every worker.", registry=registry
        )
        self.deaths = Counter(
            "aiflow_worker_deaths", "Workers that died unasked.", registry=registry
        )
        Gauge(
            "aiflow_discovery_age_seconds",
            AGE,
            registry=registry,
        ).set_function(catalog.age_s)
        workers = Gauge("aiflow_workers", "Worker processes.", ("state",), registry=registry)
        workers.labels("serving").set_function(lambda: len(pool.serving()))
        workers.labels("starting").set_function(pool.starting)
        workers.labels("leaving").set_function(lambda: len(pool.leaving()))

    def discovers(self, discovery: consul.Discovery) -> None:
        self._registry.register(DiscoveryAtScrape(discovery))

    def keeps_policy(self, age_s: Callable[[], float]) -> None:
        watch_store(self._registry, age_s)

    def text(self) -> str:
        return generate_latest(self._registry).decode()
