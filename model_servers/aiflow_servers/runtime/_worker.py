"""One worker process: what runs inside it, and the handle that the server holds.

Each worker has a pipe of its own and shares no lock with the others, so one that is killed at any
moment, even half through an answer, harms nothing but its own job. (Process pools that share one
pipe, pebble's and the standard library's, break as a whole when an idle worker is killed.)
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any

from aiflow_sdk import errors

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

# Starting a process collects the exit codes of all others; two threads that read the same code at
# once would each get half of the truth.
_exit_codes = threading.Lock()


class WorkerDiedError(Exception):
    """The process ended while it ran the job."""


class NotStartedError(Exception):
    """The process had ended before it took the job, which can safely go to another."""


class WorkerStartError(Exception):
    """The process could not be made ready for work."""


def context(modules: Sequence[str]) -> ForkServerContext:
    """How workers are started: forked off a clean helper process.

    A server's own process must not be forked, because gRPC's threads do not survive it. The helper
    has no such threads and has already imported `modules`, so that a replacement is there in
    milliseconds. (One that it cannot import is left to the worker, which says what is wrong.)
    """
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["aiflow_servers.runtime._forkserver", __name__, *modules])
    return chosen


class Worker:
    """The server's handle of one worker process. Its methods block: call them in a thread."""

    def __init__(
        self,
        ctx: ForkServerContext,
        modules: Sequence[str],
        initialize: Callable[[], object] | None,
    ) -> None:
        ours, theirs = ctx.Pipe()
        self._connection = ours
        self._process = ctx.Process(
            target=_main, args=(theirs, modules, initialize), name="aiflow-worker", daemon=True
        )
        with _exit_codes:
            self._process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        self.pid = self._process.pid or 0
        self.sentinel = self._process.sentinel  # readable when the process has ended
        self.jobs = 0

    def wait_ready(self, timeout_s: float) -> None:
        """Returns when `initialize` has run; WorkerStartError says why it has not."""
        try:
            problem = (
                pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from our own worker
                if self._connection.poll(timeout_s)
                else f"it was not ready within {timeout_s:g} s; is the machine overloaded?"
            )
        except (EOFError, OSError):
            problem = f"it died while it started: {self._describe_end()}"
        if problem:
            raise WorkerStartError(problem)

    def call(self, payload: bytes) -> tuple[bool, Any]:
        """Runs one pickled (function, args, kwargs): (True, result) or (False, exception).

        Raises:
            NotStartedError, WorkerDiedError: the process is dead.
        """
        self.jobs += 1
        try:
            self._connection.send_bytes(payload)
            self._connection.recv_bytes()  # it has the job
        except (EOFError, OSError) as error:
            raise NotStartedError from error
        try:
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._describe_end()) from error
        outcome: tuple[bool, Any] = pickle.loads(answer)  # noqa: S301 - from our own worker
        return outcome

    def kill(self) -> None:
        """Ends the process now, whatever it is doing. Does not block."""
        self._process.kill()

    def join(self) -> int:
        """Waits until the process has ended; its exit code, as multiprocessing gives it."""
        wait([self.sentinel])
        with _exit_codes:
            self._process.join()
            return self._process.exitcode or 0

    def close(self) -> None:
        """Frees what belongs to a process that has been joined."""
        self._connection.close()
        self._process.close()

    def _describe_end(self) -> str:
        if not wait([self.sentinel], timeout=1):
            return "its pipe closed"
        code = self.join()
        if code == -signal.SIGKILL:
            return "SIGKILL; the kernel does this when memory runs out"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _main(
    connection: Connection, modules: Sequence[str], initialize: Callable[[], object] | None
) -> None:
    # The server ends its workers when it has drained. Ctrl-C and supervisors signal the whole
    # process group, and must not end the jobs that the server is still waiting for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    try:
        for module in modules:
            importlib.import_module(module)
        if initialize is not None:
            initialize()
    except BaseException:  # noqa: BLE001 - told to the server, which reports it
        connection.send_bytes(pickle.dumps(traceback.format_exc()))
        return
    connection.send_bytes(pickle.dumps(""))
    # The end of the pipe is the server's way to say goodbye.
    with contextlib.suppress(EOFError, OSError):
        while True:
            payload = connection.recv_bytes()
            connection.send_bytes(b"")
            connection.send_bytes(_answer(payload))


def _answer(payload: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(payload)  # noqa: S301 - from our own server
        return pickle.dumps((True, function(*args, **kwargs)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - raised again in the server
        return pickle.dumps((False, _portable(error)), pickle.HIGHEST_PROTOCOL)


def _portable(error: BaseException) -> Exception:
    """`error` as one that arrives whole, with the worker's traceback as a note for the log."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, Exception):
        if not isinstance(error, errors.AiflowError):
            error.add_note(f"In the worker:\n{text}")
        try:
            arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        except Exception:  # noqa: BLE001 - whatever its class does when pickled, the text arrives
            arrived = None
        if type(arrived) is type(error):
            return error
    # Also what would end the server itself if it were raised there, such as SystemExit.
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    stand_in.add_note(f"In the worker:\n{text}")
    return stand_in


def _die_with_parent() -> None:
    """Ends this process when the server ends, however it ends."""
    if sys.platform == "linux":
        # Not held up by a job that computes without releasing the interpreter. It follows the
        # fork server, which ends when the server does.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
