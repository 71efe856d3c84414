"""A router that starts with 100,000 keys of 1,000 tenants: how soon it answers, what that takes.

    python benchmarks/limits_keys.py     # writes the database and starts a router with it

The database is SQLite, filled as administration would have left it. The router asks for keys and
has three limits; some of the keys are used over the wire at the end. Asking memory who sent a key
is timed in this process, with the same directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from router_unary import INFER, message
from router_ways import Way, running
from sqlalchemy import insert

from aiflow_router.identity.directory import Directory
from aiflow_router.identity.following import Following
from aiflow_router.identity.key import digest, mint
from aiflow_router.identity.keys import Keys
from aiflow_router.storage.database import changing, opened
from aiflow_router.storage.tables.tenancy import AUDIT, KEYS, MEMBERS, TENANTS

HERE = Path(__file__).parent
TENANTS_ = 1_000
KEYS_ = 100_000
USED = 500
LOOKED_UP = 50_000

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
storage: {{url: 'sqlite:///{database}'}}
auth: {{mode: required, admin_key_file: '{folder}/admin.key'}}
discovery: {{static: [{{backend: b, address: '{backend}', protocol: oip, models: [m]}}]}}
limits:
  - {{name: platform, rate: 1000000/s}}
  - {{name: tenant, per: [tenant], rate: 1000/s}}
  - {{name: key, per: [key], rate: 100/s}}
"""


async def fill(url: str, keys: int) -> list[str]:
    """Some of the keys that are there afterwards, in full."""
    rng = random.Random(1)  # noqa: S311 - keys of a benchmark
    made = [mint(rng.randbytes) for _ in range(keys)]
    made = list({one.key: one for one in made}.values())
    tenants = [f"tenant-{n}" for n in range(min(TENANTS_, len(made)))]
    plain = {"created_s": 0.0, "weight": 1.0, "pays_first": "pool", "when_out": "refuse"}
    async with opened(url) as engine, changing(engine) as connection:
        if not made:
            return []
        await connection.execute(insert(TENANTS), [{"tenant": name, **plain} for name in tenants])
        await connection.execute(
            insert(MEMBERS),
            [
                {"tenant": name, "member": "m", "role": "member", "created_s": 0.0}
                for name in tenants
            ],
        )
        await connection.execute(
            insert(KEYS),
            [
                {
                    "key": one.key,
                    "sha256": one.sha256,
                    "name": "k",
                    "tenant": tenants[at % len(tenants)],
                    "member": "m",
                    "may": ["call"],
                    "created_s": 0.0,
                }
                for at, one in enumerate(made)
            ],
        )
        await connection.execute(
            insert(AUDIT),
            {
                "at_s": 0.0,
                "actor": "benchmark",
                "action": "tenant.create",
                "tenant": "",
                "kind": "tenant",
                "subject": "",
                "details": {},
            },
        )
    return [one.text for one in made[:: max(1, len(made) // USED)]]


def started(folder: Path, backend: str, database: Path, log: int) -> Any:
    config = folder / f"{database.stem}.yaml"
    config.write_text(CONFIG.format(database=database, folder=folder, backend=backend))
    aiflow = str(Path(sys.executable).with_name("aiflow"))
    return running([aiflow, "router", "--config", str(config)], log=log)


async def used(way: Way, keys: list[str]) -> None:
    """Calls with each of them; all have to be answered."""
    request = message(100, "m")
    async with grpc.aio.insecure_channel(way.address) as channel:
        ask: Any = channel.unary_unary(f"/{INFER}")
        for key in keys:
            await ask(request, timeout=10, metadata=(("x-api-key", key),))


async def looked_up(url: str, keys: list[str]) -> tuple[float, float]:
    """Seconds to read all keys, and microseconds to know who sent one."""
    async with opened(url) as engine:
        directory = Directory()
        began_s = time.perf_counter()
        await Following(directory, engine).load()
        read_s = time.perf_counter() - began_s
    known = Keys([], required=True, sources=[directory])
    rounds_us = []
    for _ in range(5):
        began_s = time.perf_counter()
        for number in range(LOOKED_UP):
            known.identify(keys[number % len(keys)], "call")
        rounds_us.append((time.perf_counter() - began_s) / LOOKED_UP * 1e6)
    assert digest(keys[0]) != digest(keys[1])  # noqa: S101 - they are different ones
    return read_s, statistics.median(rounds_us)


def measured(folder: Path) -> Mapping[str, float]:
    databases = {"none": folder / "none.db", "100k": folder / "many.db"}
    keys = asyncio.run(fill(f"sqlite:///{databases['100k']}", KEYS_))
    asyncio.run(fill(f"sqlite:///{databases['none']}", 0))
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("ab"))
        backend = stack.enter_context(
            running([sys.executable, str(HERE / "router_backend.py")], log=log.fileno())
        )
        for name, database in databases.items():
            began_s = time.monotonic()
            with started(folder, backend.address, database, log.fileno()) as way:
                found[f"start_{name}_keys_s"] = time.monotonic() - began_s
                found[f"memory_{name}_keys_mb"] = way.memory_bytes() / 1e6
                if name == "100k":
                    asyncio.run(used(way, keys))
    read_s, identify_us = asyncio.run(looked_up(f"sqlite:///{databases['100k']}", keys))
    return {**found, "read_100k_keys_s": read_s, "identify_us": identify_us}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for figure, value in measured(Path(name)).items():
            print(f"{figure:24} {value:.3g}")
