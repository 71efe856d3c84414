"""What the tests run in worker processes; importable, because processes import it by name."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from aiflow_sdk import errors

initialized = False


def initialize() -> None:
    global initialized  # noqa: PLW0603 - what a worker imports at its start is such a global
    initialized = True


def was_initialized() -> bool:
    return initialized


def broken_initialize() -> None:
    raise ModuleNotFoundError("No module named 'heavy'")


def has_imported(module: str) -> bool:
    return module in sys.modules


def pid() -> int:
    return os.getpid()


def echo(data: bytes) -> bytes:
    return data


def wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def fetch(path: str) -> bytes:
    """What is in a file, once it is there."""
    file = Path(path)
    while not file.exists():
        time.sleep(0.005)
    return file.read_bytes()


def compute(seconds: float) -> int:
    """Holds a core, as an algorithm does."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rounds += 1
    return rounds


def compute_in_c() -> None:
    """Holds the interpreter for minutes inside one C call, deaf to Python's signal handlers."""
    re.match(r"(a|aa)+b", "a" * 60)


def touch(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - one line
        file.write(str(os.getpid()))


def touch_and_wait(path: str, seconds: float) -> None:
    touch(path)
    time.sleep(seconds)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def leave_politely() -> None:
    raise SystemExit(3)


def refuse() -> None:
    raise errors.BadInputError(
        "the picture is 9000 pixels wide; send at most 8192",
        reason="PICTURE_TOO_LARGE",
        retry_after_s=1.5,
        violations={"image.width": "at most 8192"},
        metadata={"width": "9000"},
        request_id="r-1",
    )


def fail() -> None:
    raise ValueError("the password is 1234")


class AwkwardError(Exception):
    """Cannot be unpickled: its constructor wants two arguments."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


def fail_awkwardly() -> None:
    raise AwkwardError("this", "that")


def return_what_cannot_be_pickled() -> object:
    return threading.Lock()


def ignored_signals() -> list[str]:
    return [n.name for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN]
