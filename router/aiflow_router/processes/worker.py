"""One worker: the router as it is, with the catalog and the address of its supervisor.

    python -m aiflow_router.processes.worker FOLDER NAME CONFIG

FOLDER has the supervisor's socket and this worker's, CONFIG is a file of what to run by. Started by
the supervisor only. It prints a line when it could serve, waits for one, prints another when it
serves, and ends
- on SIGTERM as `aiflow router` does; a second one ends it at once;
- when told to leave (`POST /leave/INDEX/OF`): when its callers have gone to the other workers;
- when its supervisor died: as on SIGTERM, but its address is free at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import grpc.aio
import structlog

from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config.config import Config
from aiflow_router.garbage import kept_short
from aiflow_router.main import serving
from aiflow_router.policy.keeping import of_the_file
from aiflow_router.policy.policies import Policies
from aiflow_router.processes.following import Following
from aiflow_router.processes.following import catalog as following_catalog
from aiflow_router.processes.following import policy as following_policies
from aiflow_router.rpc.server import AddressInUseError
from aiflow_router.rpc.tls import CertificateError
from aiflow_router.running import Router, Shared
from aiflow_router.storage.database import StorageError
from aiflow_router.telemetry.access import to_shared_stderr
from aiflow_sdk import logs

_log = structlog.get_logger(__name__)

SUPERVISOR_SOCKET = "supervisor.sock"
READY = "ready"
LISTENING = "listening"
CATALOG_WITHIN_S = 10.0
_FORCED_EXIT = 130
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    # The supervisor is not behind anybody's proxy, and is back soon or never.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def socket_of(folder: Path, name: str) -> Path:
    """The Unix socket of a worker's HTTP side."""
    return folder / f"worker-{name}.sock"


def counted_by(folder: Path, name: str) -> Path:
    """Where a worker leaves its metrics when it ends."""
    return folder / f"worker-{name}.prom"


async def run(folder: Path, name: str, config: Config) -> int:
    """Until it is told to end; the exit code."""
    loop = asyncio.get_running_loop()
    stop, leave = asyncio.Event(), asyncio.Event()

    supervisor = os.getppid()

    def on_signal() -> None:
        # Of the supervisor's death Linux tells several times, once a thread.
        if stop.is_set() and os.getppid() == supervisor:
            os._exit(_FORCED_EXIT)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    mirror = Mirror()
    async with grpc.aio.insecure_channel(
        f"unix:{folder / SUPERVISOR_SOCKET}", options=_OPTIONS
    ) as owner:
        # Its own file may be older than what is in force.
        policies = Policies(of_the_file(config, origin="", since_s=time.time()), number=0)
        following = Following("catalog", following_catalog(mirror, owner))
        following_policy = Following("policy", following_policies(policies, owner))
        tasks = [asyncio.create_task(one.run()) for one in (following, following_policy)]
        try:
            async with asyncio.timeout(CATALOG_WITHIN_S):
                await following.began.wait()
                await following_policy.began.wait()
            shared = Shared(
                name=name,
                mirror=mirror,
                policies=policies,
                owner=owner,
                http=socket_of(folder, name),
                leave=leave,
                following=lambda: following.now and following_policy.now,
                lost=lambda: following.lost,
            )
            if not await _turn():
                _log.warning("the supervisor died before this worker served")
                shutil.rmtree(folder, ignore_errors=True)  # Nobody is left to clean up.
                return 1
            async with serving(config, access_write=to_shared_stderr, shared=shared) as router:
                print(LISTENING, flush=True)  # noqa: T201 - read by the supervisor
                with kept_short(router.view.follow):
                    await _until_told(router, stop, leave, supervisor=supervisor)
                if os.getppid() == supervisor:
                    counted_by(folder, name).write_bytes(router.metrics.text())
                else:  # Nobody is left to clean up.
                    shutil.rmtree(folder, ignore_errors=True)
        except TimeoutError:
            _log.error("the supervisor did not tell catalog and policy", within_s=CATALOG_WITHIN_S)
            return 1
        except (AddressInUseError, CertificateError) as error:
            _log.error("cannot listen", error=str(error))
            return 1
        except StorageError as error:
            _log.error("cannot begin", error=str(error))
            return 1
        finally:
            for task in tasks:
                task.cancel()
    return 0


async def _turn() -> bool:
    """Returns when it is this worker's turn to listen: the supervisor keeps count of the order.

    False where the turn never comes, because the supervisor died.
    """
    print(READY, flush=True)  # noqa: T201 - read by the supervisor
    return bool(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


async def _until_told(
    router: Router, stop: asyncio.Event, leave: asyncio.Event, *, supervisor: int
) -> None:
    """Serves until `stop` or `leave`, then does what that asks for."""
    stopped = asyncio.create_task(stop.wait())
    told = asyncio.create_task(leave.wait())
    await asyncio.wait((stopped, told), return_when=asyncio.FIRST_COMPLETED)
    if not stopped.done():
        leaving = asyncio.create_task(router.leave())
        await asyncio.wait((stopped, leaving), return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            stopped.cancel()
            await leaving  # Raises what went wrong.
            return
        leaving.cancel()
    told.cancel()
    if os.getppid() != supervisor:
        _log.warning("the supervisor died")
        await router.stop_listening()
    await router.drain()


def main() -> None:
    folder, name, file = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    logs.configure()
    structlog.contextvars.bind_contextvars(worker=name)
    config = Config.model_validate_json(file.read_bytes())
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(run(folder, name, config)))


if __name__ == "__main__":
    main()
