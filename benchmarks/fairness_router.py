"""Whether one tenant's burst slows another at a real router, over sockets, under real load.

    .venv/bin/python benchmarks/fairness_router.py [--seconds 30]

The world of fairness.py at half its speed, so that two cores have more than it needs: what passes
is 160 calls a second, of 50 to 150 ms each, once by a limit that lets calls wait and once by a
gate; the quiet tenant sends an eighth of its fair share, the loud one 50 times that. `--seconds` is
how long the quiet one is heard each way, in rounds: alone, beside the loud one at the limit, and at
the gate, each time with the very same calls. Then tenants of weights 1 and 3 who both have more
waiting than there is, and high priority that leaves nothing to low.

A slot is the time in which one call passes, and beside others nobody does better than to wait for
the next one. Alone a quiet tenant seldom waits at all; so where calls take no time themselves the
ratio of the two would say how seldom, and nothing about fairness. Therefore the waiting is given in
slots too (what a call took less what the backend says that it worked, so with the way there and
back), and beside it what the quiet one waits alone at a limit of half the rate, its share by
weight. Fair queueing promises to be no later than that but for two slots: the one that is under
way, and that of one call of the other tenant.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fairness
import report
from fairness import QUEUE, SLOTS, TIMES, p99_s
from fairness_traffic import Answered, Met, Tenant, calling
from router_ways import Way, running

from aiflow_sdk import Client
from aiflow_sdk.tenancy import TenancyAdmin

HERE = Path(__file__).resolve().parent
SLOWER = 2.0
SERVICE_S = SLOWER * fairness.SERVICE_S
RATE = SLOTS / SERVICE_S
SLOT_S = 1 / RATE
QUIET_PER_S = fairness.QUIET_PER_S / SLOWER
AGES_S = 1.0
ROUNDS = 3
WAYS = ("limit", "gate")
WEIGHTS = {"one": 1.0, "three": 3.0}
# Calls in flight of each: who may have less asks for more.
GREED = {"one": 48, "three": 32}
SHARES_S, PRIORITIES_S = 3.0, 3.0
# Till those who send too much have filled their lines, or the last of them have left.
SETTLED_S = 0.5

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s, drain_timeout: 1s}}
storage: {{url: 'sqlite:///{folder}/aiflow.db'}}
auth: {{mode: required, admin_key_file: '{folder}/admin.key'}}
discovery: {{static: [
  {{backend: echo, address: '{backend}', protocol: oip, models: [limit, half, gate]}}]}}
routes:
  - {{match: {{model: gate}}, overload: {{limit: {slots}, queue: {queue}}}}}
limits:
  - {{name: limit, match: {{model: limit}}, rate: {rate:g}/s, burst: 1, wait: true,
     queue: {queue}, ages: {ages:g}s}}
  - {{name: half, match: {{model: half}}, rate: {half:g}/s, burst: 1, wait: true}}
"""

WANTED = {
    "quiet_tenant_p99_ratio_real": "<= 1.2",
    "quiet_tenant_refused_real": "0",
    "share_error_real": "<= 0.05",
    "low_before_high_real": "0",
    "longest_wait_ages_real": "<= 2.5",
}


@contextlib.contextmanager
def router(folder: Path) -> Iterator[Way]:
    """A router before a backend."""
    with (folder / "log").open("ab") as log, contextlib.ExitStack() as stack:
        backend = stack.enter_context(
            running([sys.executable, str(HERE / "fairness_backend.py")], log=log.fileno())
        )
        config = folder / "aiflow.yaml"
        config.write_text(
            CONFIG.format(
                folder=folder,
                backend=backend.address,
                slots=SLOTS,
                queue=QUEUE,
                rate=RATE,
                half=RATE / 2,
                ages=AGES_S,
            )
        )
        aiflow = Path(sys.executable).with_name("aiflow")
        yield stack.enter_context(
            running([str(aiflow), "router", "--config", str(config)], log=log.fileno())
        )


def admitted(address: str, folder: Path) -> Mapping[str, str]:
    """A key of each tenant, by its name."""
    keys = {}
    with Client(address, api_key=(folder / "admin.key").read_text().strip()) as client:
        admin = TenancyAdmin(client)
        for name, weight in {"quiet": 1.0, "loud": 1.0, **WEIGHTS}.items():
            admin.create_tenant(name, weight=weight)
            admin.create_member("caller", tenant=name)
            keys[name] = admin.create_key("caller", tenant=name, name="benchmark").secret
    return keys


@dataclass(slots=True, kw_only=True)
class Heard:
    """What calls met, by model: the quiet tenant's alone, and both beside each other.

    Attributes:
        router_s: CPU time of the router beside the loud one; `callers_s` is that of this process.
        lasted_s: how long that was.
    """

    alone: dict[str, Met] = field(default_factory=lambda: {m: Met() for m in (*WAYS, "half")})
    beside: dict[str, Met] = field(default_factory=lambda: {way: Met() for way in WAYS})
    router_s: float = 0.0
    callers_s: float = 0.0
    lasted_s: float = 0.0


async def heard(way: Way, tenants: Mapping[str, Tenant], seconds: float) -> Heard:
    found = Heard()
    for number in range(ROUNDS):
        await asyncio.gather(
            *(whispers(tenants, m, met, seconds / ROUNDS, number) for m, met in found.alone.items())
        )
        for model, met in found.beside.items():
            async with shouting(tenants, model, met):
                began = time.monotonic(), way.cpu_s(), time.process_time()
                await whispers(tenants, model, met, seconds / ROUNDS, number)
                found.lasted_s += time.monotonic() - began[0]
                found.router_s += way.cpu_s() - began[1]
                found.callers_s += time.process_time() - began[2]
            await asyncio.sleep(SETTLED_S)
    return found


async def whispers(
    tenants: Mapping[str, Tenant], model: str, met: Met, seconds: float, number: int
) -> None:
    await tenants["quiet"].at_random(
        model,
        met,
        per_s=QUIET_PER_S,
        seconds=seconds,
        mean_s=SERVICE_S,
        seed=f"{model} {number}",
    )


@contextlib.asynccontextmanager
async def shouting(tenants: Mapping[str, Tenant], model: str, met: Met) -> AsyncIterator[None]:
    """The loud tenant's line is full."""
    loud = asyncio.create_task(
        tenants["loud"].at_random(
            model,
            met,
            per_s=TIMES * QUIET_PER_S,
            seconds=float("inf"),
            mean_s=SERVICE_S,
            seed=f"{model} loud",
        )
    )
    before = met.refused["loud"]
    try:
        while met.refused["loud"] == before and not loud.done():  # noqa: ASYNC110 - polls what has no event
            await asyncio.sleep(0.02)
        await asyncio.sleep(SETTLED_S)
        yield
    finally:
        loud.cancel()
        await asyncio.wait((loud,))
    if not loud.cancelled():
        loud.result()  # It ends by itself only where it failed.


async def shared(tenants: Mapping[str, Tenant], model: str) -> Met:
    """What those met who all ask for more than there is, while they all do."""
    met, began_s = Met(), time.monotonic()
    end_s = began_s + SETTLED_S + SHARES_S
    await asyncio.gather(
        *(
            tenants[name].at_once(
                model, met, calls=calls, more=lambda: time.monotonic() < end_s, mean_s=SERVICE_S
            )
            for name, calls in GREED.items()
        )
    )
    met.answered = [one for one in met.answered if began_s + SETTLED_S <= one.answered_s <= end_s]
    return met


async def prioritized(tenants: Mapping[str, Tenant], model: str) -> Met:
    """One tenant's calls of low priority, while it has more of high than there is."""
    met, one = Met(), tenants["quiet"]
    low = asyncio.Event()
    high = asyncio.create_task(
        one.at_once(
            model,
            met,
            calls=2 * SLOTS,
            more=lambda: not low.is_set(),
            mean_s=SERVICE_S,
            priority="high",
        )
    )
    await asyncio.sleep(SETTLED_S)
    end_s = time.monotonic() + PRIORITIES_S
    await one.at_once(
        model,
        met,
        calls=SLOTS // 2,
        more=lambda: time.monotonic() < end_s,
        mean_s=SERVICE_S,
        priority="low",
    )
    low.set()
    await high
    return met


def share_error(met: Met) -> float:
    """How far the share of one is from its weight's, as a part of that."""
    return max(
        abs(len(met.of(name)) / len(met.answered) / (weight / sum(WEIGHTS.values())) - 1)
        for name, weight in WEIGHTS.items()
    )


def took_ms(calls: list[Answered]) -> float:
    return 1000 * p99_s([call.took_s for call in calls])


def waited_slots(met: Met) -> float:
    return p99_s([call.waited_s for call in met.of("quiet")]) / SLOT_S


def of_the_quiet(found: Heard) -> dict[str, float]:
    """Prints a table, and the worse of the two ways."""
    figures: dict[str, float] = {}
    print(f"{'':8}{'alone p99':>12}{'beside 50x':>12}{'ratio':>8}   waiting p99, in slots")
    for way in WAYS:
        alone, beside = found.alone[way], found.beside[way]
        alone_ms, beside_ms = took_ms(alone.of("quiet")), took_ms(beside.of("quiet"))
        slots = {"alone": waited_slots(alone), "beside": waited_slots(beside)}
        if way == "limit":
            slots["half"] = waited_slots(found.alone["half"])
        print(
            f"{way:8}{alone_ms:9.1f} ms{beside_ms:9.1f} ms{beside_ms / alone_ms:8.3f}   "
            + ", ".join(f"{name} {slot:.2f}" for name, slot in slots.items()),
            flush=True,
        )
        figures |= {
            f"quiet_tenant_p99_ratio_real_{way}": beside_ms / alone_ms,
            f"quiet_tenant_p99_ms_real_{way}_alone": alone_ms,
            f"quiet_tenant_p99_ms_real_{way}_beside": beside_ms,
            **{f"quiet_tenant_wait_slots_real_{way}_{name}": slot for name, slot in slots.items()},
        }
    mets = (*found.alone.values(), *found.beside.values())
    calls = min(len(met.of("quiet")) for met in mets)
    router_busy, callers_busy = found.router_s / found.lasted_s, found.callers_s / found.lasted_s
    print(
        f"{calls} calls of the quiet tenant each time; beside the loud one the router had "
        f"{router_busy:.0%} of a core, the callers {callers_busy:.0%}",
        flush=True,
    )
    worst = max(figures[f"quiet_tenant_p99_ratio_real_{way}"] for way in WAYS)
    return {
        "quiet_tenant_p99_ratio_real": worst,
        "quiet_tenant_calls_real": calls,
        "quiet_tenant_refused_real": sum(met.refused["quiet"] for met in mets),
        **figures,
        "fairness_router_busy_real": router_busy,
    }


def of_shares(found: Mapping[str, Met]) -> dict[str, float]:
    """Prints a line a way."""
    errors = {way: share_error(met) for way, met in found.items()}
    for way, met in found.items():
        served = ", ".join(f"{name} {len(met.of(name))}" for name in WEIGHTS)
        print(f"{way:8}served by weight: {served}; share error {errors[way]:.2%}", flush=True)
    return {
        "share_error_real": max(errors.values()),
        **{f"share_error_real_{way}": error for way, error in errors.items()},
    }


def of_priorities(found: Mapping[str, Met]) -> dict[str, float]:
    """Prints a line a way. A gate's `ages` is the time in which as many pass as may wait."""
    early, longest_ages = 0, 0.0
    for way, met in found.items():
        since_s = min(one.sent_s for one in met.answered)
        per_s = len(met.answered) / (max(one.answered_s for one in met.answered) - since_s)
        ages_s = AGES_S if way == "limit" else QUEUE / per_s
        high_s = p99_s([one.waited_s for one in met.of("quiet", "high")])
        low_s = [one.waited_s for one in met.of("quiet", "low")]
        print(
            f"{way:8}high waited {high_s:.2f} s at the 99th percentile, low {min(low_s):.2f} to "
            f"{max(low_s):.2f} s ({len(low_s)} calls; ages {ages_s:.2f} s)",
            flush=True,
        )
        early += sum(waited_s < ages_s for waited_s in low_s)
        longest_ages = max(longest_ages, max(low_s) / ages_s)
    return {"low_before_high_real": early, "longest_wait_ages_real": longest_ages}


async def measured(way: Way, keys: Mapping[str, str], seconds: float) -> dict[str, float]:
    async with contextlib.AsyncExitStack() as stack:
        tenants = {
            name: await stack.enter_async_context(calling(way.address, name, key))
            for name, key in keys.items()
        }
        found = await heard(way, tenants, seconds)
        figures = of_the_quiet(found)
        shares = await asyncio.gather(*(shared(tenants, model) for model in WAYS))
        figures |= of_shares(dict(zip(WAYS, shares, strict=True)))
        priorities = await asyncio.gather(*(prioritized(tenants, model) for model in WAYS))
        figures |= of_priorities(dict(zip(WAYS, priorities, strict=True)))
    mets = (*found.beside.values(), *shares, *priorities)
    figures["longest_wait_s_real"] = max(one.waited_s for met in mets for one in met.answered)
    return figures


def figures(seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with router(folder) as way:
            return asyncio.run(measured(way, admitted(way.address, folder), seconds))


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=float, default=30.0)
    report.write("fairness_router", figures(asked.parse_args().seconds), wanted=WANTED)
