"""Four routers on one Redis, called at three times the limit: what is granted, to the call.

A bucket of `BURST` that fills with `RATE` a second grants at most BURST + RATE x t in a time t, and
no less where more is asked all the time. t runs from just before the first call to just after the
last answer, so what is granted beyond it is granted wrongly, and not by a slow clock.

Beside it one call a second and router for a model of 4 a minute, strictly: Redis's own log of them
is read while it grows, and no span of 60 s in it may have a fifth.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hiredis
from redis_process import running as redis_running
from router_unary import INFER, message
from router_ways import Way, running

HERE = Path(__file__).parent
ROUTERS = 4
RATE, BURST, TIMES = 100.0, 50.0, 3.0
STRICT, STRICT_S = 4, 60.0
CALLERS = 4
WITHIN_S = 10.0
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
redis: {{url: 'redis://127.0.0.1:{redis}', timeout: 2s}}
discovery: {{static: [{{backend: b, address: '{backend}', protocol: oip, models: [m, s]}}]}}
limits:
  - {{name: all, match: {{model: m}}, rate: {rate:g}/s, burst: {burst:g}, away: closed}}
  - {{name: strict, match: {{model: s}}, rate: {strict}/min, strict: true, away: closed}}
"""


@dataclass(kw_only=True)
class Seen:
    """What became of calls.

    Attributes:
        first_s: just before the first was sent, as `last_s` is just after the last answer.
        strict: by Redis's log, when whose call was granted.
    """

    ended: dict[str, int] = field(default_factory=dict)
    first_s: float = math.inf
    last_s: float = 0.0
    strict: dict[bytes, float] = field(default_factory=dict)

    def count(self, what: str, sent_s: float) -> None:
        self.ended[what] = self.ended.get(what, 0) + 1
        self.first_s = min(self.first_s, sent_s)
        self.last_s = max(self.last_s, time.monotonic())


@contextlib.contextmanager
def routers(folder: Path) -> Iterator[tuple[list[Way], int]]:
    """With the port of their Redis."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("ab"))
        redis = stack.enter_context(redis_running(log.fileno()))
        backend = stack.enter_context(
            running([sys.executable, str(HERE / "router_backend.py")], log=log.fileno())
        )
        config = folder / "aiflow.yaml"
        config.write_text(
            CONFIG.format(
                redis=redis, backend=backend.address, rate=RATE, burst=BURST, strict=STRICT
            )
        )
        aiflow = str(Path(sys.executable).with_name("aiflow"))
        command = [aiflow, "router", "--config", str(config)]
        yield (
            [stack.enter_context(running(command, log=log.fileno())) for _ in range(ROUTERS)],
            redis,
        )


async def calling(
    address: str, model: str, seen: Seen, *, every_s: float, first_s: float, until_s: float
) -> None:
    """At a steady pace, whatever the answers are; late calls are made up for."""
    request = message(100, model)
    under_way: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        ask: Any = channel.unary_unary(f"/{INFER}")

        async def call() -> None:
            sent_s = time.monotonic()
            try:
                await ask(request, timeout=WITHIN_S)
            except grpc.aio.AioRpcError as error:
                seen.count(error.code().name, sent_s)
            else:
                seen.count("OK", sent_s)

        due_s = first_s
        while due_s < until_s:
            await asyncio.sleep(due_s - time.monotonic())
            task = asyncio.create_task(call())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due_s += every_s
        if under_way:
            await asyncio.wait(under_way)


async def reading(port: int, seen: Seen) -> None:
    """Twice a second, until it is cancelled; what is in the log stays there for a minute."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    parser = hiredis.Reader()

    async def asked(*command: str) -> Any:
        writer.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # of any length
        while (answer := parser.gets()) is False:
            parser.feed(await reader.read(65536))
        return answer

    try:
        while True:
            for key in await asked("KEYS", "*strict*"):
                log = await asked("ZRANGE", key.decode(), "0", "-1", "WITHSCORES")
                seen.strict.update(
                    (who, float(at)) for who, at in zip(log[::2], log[1::2], strict=True)
                )
            await asyncio.sleep(0.5)
    finally:
        writer.close()


def crossings(at_s: list[float], *, most: int, period_s: float) -> int:
    """Calls that are more than the `most`-th within a period that ends with them."""
    at_s = sorted(at_s)
    return sum(
        later - earlier < period_s for earlier, later in zip(at_s, at_s[most:], strict=False)
    )


async def traffic(ways: list[Way], redis: int, *, lasts_s: float) -> dict[str, float]:
    wide, strict = Seen(), Seen()
    log = asyncio.create_task(reading(redis, strict))
    every_s = ROUTERS * CALLERS / (RATE * TIMES)
    began_s = time.monotonic()
    first_s = began_s + 0.2
    async with asyncio.TaskGroup() as tasks:
        for number, way in enumerate(ways):
            for caller in range(CALLERS):
                offset_s = (number * CALLERS + caller) / (ROUTERS * CALLERS) * every_s
                tasks.create_task(
                    calling(
                        way.address,
                        "m",
                        wide,
                        every_s=every_s,
                        first_s=first_s + offset_s,
                        until_s=first_s + lasts_s,
                    )
                )
            tasks.create_task(
                calling(
                    way.address,
                    "s",
                    strict,
                    every_s=1.0,
                    first_s=first_s + number / ROUTERS,
                    until_s=first_s + max(lasts_s, STRICT_S + 5),
                )
            )
    await asyncio.sleep(0.6)
    log.cancel()
    await asyncio.wait((log,))
    return figures(wide, strict)


def figures(wide: Seen, strict: Seen) -> dict[str, float]:
    allowed = BURST + RATE * (wide.last_s - wide.first_s)
    granted = wide.ended.get("OK", 0)
    others = {
        code: count
        for code, count in {**wide.ended, **strict.ended}.items()
        if code not in ("OK", "RESOURCE_EXHAUSTED")
    }
    if others:
        raise SystemExit(f"calls ended as they must not: {others}")
    at_s = list(strict.strict.values())
    if len(at_s) < STRICT:
        raise SystemExit(f"only {len(at_s)} calls of the strict rule were seen")
    return {
        "calls": sum(wide.ended.values()),
        "granted": granted,
        "allowed": allowed,
        "over_grant_exact": max(0.0, granted / allowed - 1),
        "under_grant_exact": max(0.0, 1 - granted / allowed),
        "strict_granted": strict.ended.get("OK", 0),
        "strict_crossings": crossings(at_s, most=STRICT, period_s=STRICT_S),
    }


def measured(folder: Path, *, lasts_s: float = 60.0) -> Mapping[str, float]:
    with routers(folder) as (ways, redis):
        return asyncio.run(traffic(ways, redis, lasts_s=lasts_s))
