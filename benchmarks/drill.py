"""Ten minutes of operations under steady traffic, in which no call may fail.

    make drill
    python benchmarks/drill.py --minutes 1 [--discovery static]

A model's new version is brought in by canary, a fallback is added, backends are killed, Consul is
killed and comes back, the routes are rolled back: each by what an operator would do, a command or
a change of the file, while callers call on. Prints a timeline, writes .cache/bench/drill.json and
.cache/bench/drill.png.

With `--discovery static` the endpoints are listed in aiflow.yaml, and the steps about Consul are
left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import drill_plot
import drill_traffic
import report
import yaml
from consul_process import Agent
from drill_traffic import Traffic
from router_ways import Way, running

from aiflow_sdk.consul import Consul
from aiflow_sdk.consul_entry import Entry, to_service

HERE = Path(__file__).parent
AIFLOW = str(Path(sys.executable).with_name("aiflow"))
RATE = 150.0
IN_FORCE_WITHIN_S = 10.0
READY_S = 15.0
MODELS = {"detector": 2, "detector-v2": 2, "detector-lite": 1}  # And how many servers of each.
PLAIN: dict[str, object] = {"match": {"model": "detector"}, "timeout": "5s"}


@dataclass(kw_only=True)
class World:
    """What the steps act upon.

    Attributes:
        file: the router's aiflow.yaml.
        fixed: what of it no step changes.
        backends: by model, those that live.
        consul: None with static discovery.
        events: (seconds since the traffic began, what was done).
    """

    file: Path
    fixed: dict[str, object]
    backends: dict[str, list[Way]]
    consul: Agent | None
    traffic: Traffic
    events: list[tuple[float, str]] = field(default_factory=list)

    def say(self, what: str) -> None:
        at_s = self.traffic.now_s()
        told = f"{self.traffic.calls:7} calls, {len(self.traffic.failures)} failed"
        print(f"{int(at_s) // 60:02}:{at_s % 60:04.1f}  {told}  {what}", flush=True)

    async def routes(self, **route: object) -> None:
        """Writes another route for the model into the file; returns when calls go by it."""
        before, since_s = self.traffic.versions[-1], time.monotonic()
        write(self.file, {**self.fixed, "routes": [{**PLAIN, **route}]})
        await self._in_force(before, since_s)

    async def aiflow(self, *arguments: str) -> None:
        """Changes the policy by a command, which is timed from its start; returns as `routes`."""
        before, since_s = self.traffic.versions[-1], time.monotonic()
        process = await asyncio.create_subprocess_exec(
            AIFLOW,
            *arguments,
            env={**os.environ, "AIFLOW_ROUTER": self.traffic.address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode:
            sys.exit(f"aiflow {' '.join(arguments)}: {said.decode()}")
        await self._in_force(before, since_s)

    async def _in_force(self, before: str, since_s: float) -> None:
        try:
            async with asyncio.timeout(IN_FORCE_WITHIN_S):
                version = await self.traffic.in_force_after(before)
        except TimeoutError:
            sys.exit(f"the router took no other policy within {IN_FORCE_WITHIN_S:g} s: see its log")
        took_s = time.monotonic() - since_s
        self.say(f"    policy {version} is in force after {took_s:.2f} s")

    def kill(self, model: str) -> None:
        """One server of the model, as the kernel kills: at once, without a word."""
        self.backends[model].pop().popen.kill()


Step = Callable[[World], Awaitable[None]]


async def canary(world: World, *arguments: str) -> None:
    await world.aiflow("canary", "detector", *arguments)


async def add_fallback(world: World) -> None:
    split = {"detector": 0, "detector-v2": 100}
    await world.routes(split=split, fallback=["detector-lite"])


async def lose_one(world: World) -> None:
    world.kill("detector-v2")


async def lose_consul(world: World) -> None:
    if world.consul is not None:
        world.consul.kill()


async def return_consul(world: World) -> None:
    """It has lost all it knew; servers tell it anew, as their registrars do."""
    if world.consul is not None:
        await asyncio.to_thread(world.consul.start)
        await register(world.consul.address, world.backends)


async def roll_back(world: World) -> None:
    await world.aiflow("policy", "rollback", world.traffic.versions[0])


async def nothing(_: World) -> None:
    """Only traffic."""


# When, as a part of the whole time; what; how.
STEPS: Sequence[tuple[float, str, Step]] = (
    (0.00, "steady traffic to detector", nothing),
    (0.10, "canary: 10% to detector-v2", lambda world: canary(world, "--new", "detector-v2")),
    (0.20, "canary: 50%", lambda world: canary(world, "--step")),
    (0.30, "canary: 100%", lambda world: canary(world, "--step")),
    (0.40, "add the fallback detector-lite", add_fallback),
    (0.50, "kill -9 one server of detector-v2", lose_one),
    (0.60, "kill -9 the other: detector-lite takes over", lose_one),
    (0.70, "kill -9 Consul", lose_consul),
    (0.80, "Consul is back, empty", return_consul),
    (0.90, "roll back to detector", roll_back),
)
OF_CONSUL = (lose_consul, return_consul)


async def register(address: str, backends: dict[str, list[Way]]) -> None:
    """Tells Consul of all that live, with checks that notice within a second when one does not."""
    async with Consul(address) as consul:
        for model, ways in backends.items():
            for way in ways:
                entry = Entry(backend=model, address=way.address, protocol="oip", models=(model,))
                check = {"TCP": way.address, "Interval": "1s", "Status": "passing"}
                await consul.put(
                    "/v1/agent/service/register", body={**to_service(entry), "Check": check}
                )


def write(file: Path, config: dict[str, object]) -> None:
    """In one piece: the router reads the old file or the new one."""
    new = file.with_suffix(".new")
    new.write_text(yaml.safe_dump(config), encoding="utf-8")
    new.replace(file)


def discovery(backends: dict[str, list[Way]], consul: Agent | None) -> dict[str, object]:
    if consul is not None:
        return {"consul": {"address": consul.address}}
    listed = [
        {"backend": model, "address": way.address, "protocol": "oip", "models": [model]}
        for model, ways in backends.items()
        for way in ways
    ]
    return {"static": listed}


async def drill(minutes: float, *, with_consul: bool, folder: Path) -> World:
    """Everything from the start to the last step and its time after it."""
    async with AsyncExitStack() as stack:
        log = stack.enter_context((folder / "log").open("ab"))
        backend = [sys.executable, str(HERE / "router_backend.py")]
        backends = {
            model: [stack.enter_context(started(backend, log.fileno())) for _ in range(count)]
            for model, count in MODELS.items()
        }
        consul = Agent(log.fileno()) if with_consul else None
        if consul is not None:
            stack.callback(consul.kill)
            await asyncio.to_thread(consul.start)
            await register(consul.address, backends)
        file = folder / "aiflow.yaml"
        fixed: dict[str, object] = {
            "listen": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_grace": "0s"},
            "discovery": discovery(backends, consul),
        }
        write(file, {**fixed, "routes": [PLAIN]})
        command = [AIFLOW, "router", "--config", str(file)]
        router = stack.enter_context(started(command, log.fileno()))
        await ready(router.address)
        traffic = await stack.enter_async_context(
            drill_traffic.running(router.address, model="detector", rate=RATE)
        )
        world = World(file=file, fixed=fixed, backends=backends, consul=consul, traffic=traffic)
        for part, what, step in STEPS:
            if consul is None and step in OF_CONSUL:
                continue
            await asyncio.sleep(max(0.0, part * minutes * 60 - traffic.now_s()))
            world.say(what)
            world.events.append((traffic.now_s(), what))
            await step(world)
        await asyncio.sleep(max(0.0, minutes * 60 - traffic.now_s()))
        world.say("the end")
    return world


@contextlib.contextmanager
def started(command: list[str], log: int) -> Iterator[Way]:
    with running(command, log=log) as way:
        yield way


async def ready(address: str) -> None:
    """Returns when a call is answered."""
    probe = Traffic(address=address, model="detector", rate=20.0)
    task = asyncio.create_task(probe.calling())
    try:
        async with asyncio.timeout(READY_S):
            await probe.in_force_after("")
    except TimeoutError:
        sys.exit(f"no call was answered within {READY_S:g} s: {probe.failures[-1:]}")
    finally:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, all in all")
    parser.add_argument("--discovery", choices=("consul", "static"), default="consul")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            world = asyncio.run(
                drill(given.minutes, with_consul=given.discovery == "consul", folder=Path(folder))
            )
        except BaseException:
            sys.stderr.write((Path(folder) / "log").read_text(encoding="utf-8")[-4000:])
            raise
    traffic = world.traffic
    for at_s, why in traffic.failures[:20]:
        print(f"failed at {at_s:.1f} s: {why}")
    by_model = sum(traffic.answered.values(), Counter[str]())
    plot = report.FOLDER / "drill.png"
    drill_plot.draw(traffic, world.events, plot)
    report.write(
        "drill",
        {
            "calls": traffic.calls,
            "failed_calls": len(traffic.failures),
            "slowest_s": traffic.slowest_s,
            "minutes": given.minutes,
            "discovery": given.discovery,
            **{f"answered_by_{name}": count for name, count in sorted(by_model.items())},
        },
        wanted={"failed_calls": "0"},
    )
    print(f"drawn to {os.path.relpath(plot, HERE.parent)}")
    sys.exit(bool(traffic.failures))


if __name__ == "__main__":
    main()
