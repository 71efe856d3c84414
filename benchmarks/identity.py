"""What many keys cost: the start of a router that has them, its memory, and to know one again.

100,000 keys of 1,000 tenants in SQLite; a router of one process is started with none and with all.
Writes .cache/bench/identity.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import structlog
from report import write
from sqlalchemy import insert

from aiflow_router.identity.directory import Directory
from aiflow_router.identity.following import Following
from aiflow_router.identity.keys import Keys
from aiflow_router.storage.database import opened
from aiflow_router.storage.tables.tenancy import KEYS, MEMBERS, TENANTS

KEYS_COUNT = 100_000
TENANTS_COUNT = 1000
MEMBERS_COUNT = 20_000
AT_ONCE = 10_000
LOOKS = 100
RUN = "import sys; from aiflow_router import command; command.router(sys.argv[1:])"
WANTED = {"start_100k_keys_s": "<= 5"}


def text(number: int) -> str:
    return f"aif_{number:08x}_{number:043d}"


async def fill(url: str) -> None:
    async with opened(url) as engine, engine.begin() as connection:
        tenant = {"weight": 1.0, "pays_first": "pool", "when_out": "refuse", "created_s": 0.0}
        tenants = [{"tenant": f"tenant-{n}", **tenant} for n in range(TENANTS_COUNT)]
        await connection.execute(insert(TENANTS), tenants)
        members = [owner(number) for number in range(MEMBERS_COUNT)]
        await connection.execute(
            insert(MEMBERS), [{**member, "role": "member", "created_s": 0.0} for member in members]
        )
        for start in range(0, KEYS_COUNT, AT_ONCE):
            rows = [
                {
                    "key": text(number)[:12],
                    "sha256": hashlib.sha256(text(number).encode()).digest(),
                    "name": f"key {number}",
                    **owner(number % MEMBERS_COUNT),
                    "may": ["call"],
                    "created_s": 0.0,
                }
                for number in range(start, start + AT_ONCE)
            ]
            await connection.execute(insert(KEYS), rows)


def owner(member: int) -> dict[str, Any]:
    return {"tenant": f"tenant-{member % TENANTS_COUNT}", "member": f"member-{member}"}


@contextlib.contextmanager
def started(folder: Path, url: str) -> Iterator[tuple[float, float]]:
    """A router with this database: seconds until it listened, and its MiB of memory then."""
    (folder / "aiflow.yaml").write_text(f"storage: {{url: '{url}'}}\n")
    address = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    began_s = time.perf_counter()
    with subprocess.Popen(
        (sys.executable, "-c", RUN, *address),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            json.loads(child.stdout.readline() if child.stdout else b"")
            took_s = time.perf_counter() - began_s
            yield took_s, psutil.Process(child.pid).memory_info().rss / 2**20
        finally:
            child.terminate()


async def known(url: str) -> dict[str, float]:
    """What a process that has all keys does with them."""
    async with opened(url) as engine:
        directory = Directory()
        following = Following(directory, engine)
        began_s = time.perf_counter()
        await following.load()
        load_s = time.perf_counter() - began_s
        keys = Keys([], required=True, sources=[directory])
        texts = [text(number) for number in range(KEYS_COUNT)]
        began_s = time.perf_counter()
        for one in texts:
            keys.identify(one, "call")
        identify_s = (time.perf_counter() - began_s) / KEYS_COUNT
        began_s = time.perf_counter()
        await following.settle()
        settle_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        for _ in range(LOOKS):
            await following.look()
        look_s = (time.perf_counter() - began_s) / LOOKS
    return {
        "load_100k_keys_s": load_s,
        "identify_us": identify_s * 1e6,
        "write_last_use_of_100k_keys_s": settle_s,
        "look_for_changes_ms": look_s * 1000,
    }


async def figures() -> dict[str, float]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as folder:
        none, full = Path(folder, "none"), Path(folder, "full")
        for path in (none, full):
            path.mkdir()
        url = f"sqlite:///{full / 'aiflow.db'}"
        await fill(url)
        with started(none, f"sqlite:///{none / 'aiflow.db'}") as (empty_s, empty_mb):
            pass
        with started(full, url) as (full_s, full_mb):
            pass
        return {
            "start_no_keys_s": empty_s,
            "start_100k_keys_s": full_s,
            "memory_100k_keys_mb": full_mb - empty_mb,
            **await known(url),
        }


if __name__ == "__main__":
    write("identity", asyncio.run(figures()), wanted=WANTED)
