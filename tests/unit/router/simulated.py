"""Tritons that batch, in simulated time: calls come at random, and a strategy picks for them."""

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from unit.router.loads import Asking, load, pick

from aiflow_router.balancing.filling import Filling
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Memory

EXECUTION_S = 0.040
ITEM_S = 0.0005


@dataclass
class Triton:
    """Runs what has gathered as one batch, as soon as the batch before is done."""

    max_batch: int
    queue: list[tuple[float, Asking, Load]] = field(default_factory=list)
    running: list[tuple[float, Asking, Load]] = field(default_factory=list)
    executions: int = 0

    def start(self) -> float | None:
        """How long the batch takes that starts now; None where it is busy or has nothing to do."""
        if self.running or not self.queue:
            return None
        self.running, self.queue = self.queue[: self.max_batch], self.queue[self.max_batch :]
        self.executions += 1
        return EXECUTION_S + ITEM_S * len(self.running)


@dataclass
class Outcome:
    """Answer times in the order in which calls came, and executions of all Tritons."""

    took_s: list[float]
    executions: int
    asking: Sequence[Asking]

    def mean_batch(self) -> float:
        return len(self.took_s) / self.executions


def filling(aim_s: float, *, start: int = 0) -> Asking:
    return Asking(memory=Memory(timed=True, filling=Filling(model="m", aim_s=aim_s, start=start)))


def simulate(
    strategy: str,
    *,
    per_s: float,
    aim_s: float,
    calls: int = 1000,
    tritons: int = 3,
    max_batch: int = 8,
    routers: int = 1,
    seed: int = 1,
) -> Outcome:
    """`calls` come through `routers` in turn, each of which sees only its own."""
    rng = random.Random(seed)
    servers = [Triton(max_batch=max_batch) for _ in range(tritons)]
    asking = [filling(aim_s) for _ in range(routers)]
    loads = [[load(port) for port in range(tritons)] for _ in range(routers)]
    for each in itertools.chain.from_iterable(loads):
        each.rooms["m"] = 2 * max_batch
    took_s = [0.0] * calls
    # (when, order, the Triton whose batch is done; None: a call comes)
    events: list[tuple[float, int, int | None]] = []
    order = itertools.count()
    due_s = 0.0
    for _ in range(calls):
        due_s += rng.expovariate(per_s)
        heapq.heappush(events, (due_s, next(order), None))
    number_of: dict[int, int] = {}
    number = 0
    while events:
        now_s, _, done = heapq.heappop(events)
        if done is None:
            router, index = number % routers, number
            number += 1
            chosen = pick(strategy, loads[router], rng, asking=asking[router], now_s=now_s)
            chosen.inflight += 1
            at = loads[router].index(chosen)
            call = (now_s, asking[router], chosen)
            number_of[id(call)] = index
            servers[at].queue.append(call)
        else:
            at = done
            for call in servers[at].running:
                came_s, who, where = call
                where.inflight -= 1
                took_s[number_of.pop(id(call))] = now_s - came_s
                who.memory.answered(where, outcome="OK", took_s=now_s - came_s, now_s=now_s)
            servers[at].running = []
        if (takes_s := servers[at].start()) is not None:
            heapq.heappush(events, (now_s + takes_s, next(order), at))
    return Outcome(
        took_s=took_s, executions=sum(server.executions for server in servers), asking=asking
    )
