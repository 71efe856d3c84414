"""Other policies in the routing table: new calls go by them at once, and memory stays."""

import asyncio
import random
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.publisher import Publisher
from aiflow_router.catalog.snapshot import Entry
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.limits.gate import Gate, Shape
from aiflow_router.limits.overload import Overload, gates, succeeding
from aiflow_router.routing import table as table_module
from aiflow_router.routing.table import Policies, Policy, Table
from aiflow_sdk import errors

PLAIN = Policy()


def entry(*models: str, address: str = "h:1") -> Entry:
    return Entry(
        endpoint=Endpoint(
            backend="b", address=address, protocol=Protocol.OIP, models=models, services=()
        ),
        state=State.READY,
    )


class Mesh:
    """A table that follows a catalog with models `a` and `b`."""

    def __init__(self, **models: Policy) -> None:
        self.now_s = 100.0
        self.publisher = Publisher()
        loads = Loads(clock=lambda: self.now_s)
        self.table = Table(
            loads=loads,
            policies=Policies(version="1", models=MappingProxyType(models)),
            default=PLAIN,
            clock=lambda: self.now_s,
        )
        self.publisher.follow(loads.follow)
        self.publisher.follow(self.table.follow)

    async def put(self, one: Entry) -> None:
        self.publisher.put(one)
        await self.publisher.settled()

    async def swap(self, **models: Policy) -> None:
        await self.table.swap(Policies(version="2", models=models))


async def mesh(**models: Policy) -> Mesh:
    found = Mesh(**models)
    await found.put(entry("a", "b"))
    return found


KEPT = ("memory", "budget", "hedge", "gates", "pool", "loads")


@pytest.mark.parametrize(
    ("new", "anew"),
    [
        pytest.param(Policy(timeout_s=2.0), set(), id="of another timeout everything stays"),
        pytest.param(
            Policy(balance="peak_ewma"), {"memory", "pool"}, id="another balance remembers anew"
        ),
        pytest.param(
            Policy(balance="batch_aware", latency_aim_s=0.1),
            {"memory", "pool"},
            id="filling batches remembers anew",
        ),
        pytest.param(
            Policy(retry=RetryPolicy(attempts=3)), set(), id="more attempts share the same budget"
        ),
        pytest.param(
            Policy(retry=RetryPolicy(budget=0.5)), {"budget"}, id="another budget begins anew"
        ),
        pytest.param(Policy(hedged=True), {"hedge"}, id="a hedge that was not there"),
        pytest.param(
            Policy(overload=Overload(limit=None)), {"gates"}, id="from a fixed limit to an adaptive"
        ),
        pytest.param(
            Policy(overload=Overload(limit=1)), set(), id="another limit is the same gate's"
        ),
    ],
)
async def test_what_a_swap_keeps(new: Policy, anew: set[str]) -> None:
    found = await mesh()
    before = found.table.model("a")
    await found.swap(a=new)
    after = found.table.model("a")
    assert {name for name in KEPT if getattr(after, name) != getattr(before, name)} == anew
    assert after.timeout_s == new.timeout_s
    assert after.retry == new.retry
    assert found.table.stamp == ("x-aiflow-policy-version", "2")
    assert found.table.model("b").timeout_s == PLAIN.timeout_s
    # Who began before goes by what he began with.
    assert before.timeout_s == PLAIN.timeout_s


async def test_a_name_whose_policy_stays_keeps_its_plan() -> None:
    found = await mesh(a=Policy(timeout_s=3.0))
    before = found.table.model("a"), found.table.model("b")
    await found.swap(a=Policy(timeout_s=3.0))
    assert (found.table.model("a"), found.table.model("b")) == before


async def test_a_route_makes_a_name_known_and_its_end_lets_it_be_forgotten() -> None:
    found = await mesh()
    await found.swap(c=PLAIN)
    with pytest.raises(errors.NoEndpointError):
        found.table.model("c")
    await found.swap()
    with pytest.raises(errors.ModelNotFoundError):
        found.table.model("c")


async def test_the_gate_of_a_name_without_endpoints_changes_too() -> None:
    found = await mesh()
    await found.put(entry("b"))
    await found.swap(a=Policy(overload=Overload(limit=7)))
    await found.put(entry("a", "b"))
    assert found.table.model("a").gates.unary.limit == 7


async def test_what_moves_in_the_catalog_while_plans_are_made_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_module, "SLICE_NAMES", 1)
    names = [f"m{n}" for n in range(20)]
    found = Mesh()
    await found.put(entry(*names))
    swapping = asyncio.create_task(
        found.swap(**{name: Policy(timeout_s=1.0, balance="round_robin") for name in names})
    )
    await asyncio.sleep(0)
    assert found.table.model("m0").timeout_s == PLAIN.timeout_s
    await found.put(entry(*names, address="h:2"))
    await found.put(entry(*names, "late", address="h:3"))
    assert not swapping.done()
    await swapping
    for name in names:
        plan = found.table.model(name)
        assert (plan.timeout_s, len(plan.loads), len(plan.memory.turns)) == (1.0, 3, 3)
    assert found.table.model("late").timeout_s == PLAIN.timeout_s


async def test_a_swap_that_is_cancelled_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "SLICE_NAMES", 1)
    found = await mesh()
    swapping = asyncio.create_task(found.swap(a=Policy(timeout_s=1.0), b=Policy(timeout_s=1.0)))
    await asyncio.sleep(0)
    swapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swapping
    assert {found.table.model(name).timeout_s for name in "ab"} == {PLAIN.timeout_s}
    assert found.table.stamp[1] == "1"
    await found.swap(a=Policy(timeout_s=2.0))
    assert found.table.model("a").timeout_s == 2.0


def full(limit: int = 2, waiting: int = 3) -> tuple[Gate, list[Any]]:
    gate = Gate(limit=limit, queue=10, rng=random.Random(0))
    for _ in range(limit):
        assert gate.try_enter()
    return gate, [gate.join(priority="", deadline_s=1e9, now_s=0.0) for _ in range(waiting)]


@pytest.mark.parametrize(
    ("shape", "entered", "shed"),
    [
        pytest.param(Shape(limit=4, queue=10), 2, 0, id="a wider gate lets some in"),
        pytest.param(Shape(limit=1, queue=10), 0, 0, id="a narrower one nobody, and sheds nobody"),
        pytest.param(Shape(limit=2, queue=1), 0, 2, id="a shorter line is cut at its end"),
        pytest.param(Shape(limit=3, queue=1), 1, 1, id="who gets in is not cut"),
        pytest.param(Shape(limit=2, queue=10, shadow=True), 3, 0, id="in shadow all get in"),
    ],
)
def test_a_gate_takes_other_settings_with_calls_inside(
    shape: Shape, entered: int, shed: int
) -> None:
    gate, tickets = full()
    gate.reshape(shape, 0.0)
    assert [ticket.entered for ticket in tickets] == [True] * entered + [False] * (3 - entered)
    assert [t.refusal is not None for t in tickets] == [False] * (3 - shed) + [True] * shed
    assert (gate.inflight, gate.limit) == (2 + entered, shape.limit)
    assert gate.refused.total() == shed


OVERLOADS = st.sampled_from(
    [
        Overload(),
        Overload(limit=8),
        Overload(mode="off"),
        Overload(limit=8, mode="shadow"),
        Overload(limit=None),
        Overload(limit=None, highest=9),
    ]
)


@given(st.lists(OVERLOADS, min_size=2, max_size=5))
@settings(max_examples=30)
def test_settings_that_follow_others_are_those_of_a_new_gate(chain: list[Overload]) -> None:
    rng = random.Random(0)
    found = gates(chain[0], rng)
    for overload in chain[1:]:
        found.unary.try_enter()  # Where there is room.
        before, inside = found, found.unary.inflight
        found = succeeding(found, overload, rng).begin(0.0)
        anew = gates(overload, rng)
        for one, other in zip(found.each(), anew.each(), strict=True):
            assert (one.limit, one.queue, one.shadow) == (other.limit, other.queue, other.shadow)
        assert found.limited == anew.limited
        # Calls inside are counted on, unless streams are counted otherwise from here on.
        kept = found.unary is before.unary
        assert kept == ((found.stream is found.unary) == (before.stream is before.unary))
        assert found.unary.inflight == (inside if kept else 0)
