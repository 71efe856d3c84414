"""Whatever changes in whatever order, what is published is what a rebuild from scratch gives."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiflow_router.balancing.load import Loads
from aiflow_router.catalog import publisher
from aiflow_router.catalog.endpoint import Endpoint, Key, Protocol, State
from aiflow_router.catalog.publisher import Publisher
from aiflow_router.catalog.snapshot import Change, Entry, Served, Snapshot, build
from aiflow_router.forwarding.link import Links
from aiflow_router.routing.table import Policies, Policy, Table

NAMES = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6).map(tuple)
KEYS = st.sampled_from([(backend, f"h:{port}") for backend in "xy" for port in range(1, 4)])
POLICY = Policy(timeout_s=1.0, balance="round_robin")


def entry(
    key: Key,
    *,
    models: tuple[str, ...] = (),
    services: tuple[str, ...] = (),
    state: State = State.READY,
    weight: int = 1,
) -> Entry:
    endpoint = Endpoint(
        backend=key[0],
        address=key[1],
        protocol=Protocol.OIP if models else Protocol.GRPC,
        models=models,
        services=services,
        weight=weight,
    )
    return Entry(endpoint=endpoint, state=state)


@contextmanager
def small_slices() -> Iterator[None]:
    """Slices of a few steps, one after the other at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "SLICE_STEPS", 3)
        patch.setattr(publisher, "ENTRY_STEPS", 1)
        patch.setattr(publisher, "GATHER_S", 0.0)
        yield


def unordered(served: Served) -> dict[str, frozenset[Key]]:
    return {name: frozenset(keys) for name, keys in served.items()}


class Replayed:
    """What a follower knows that looks at changes only."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.models: dict[str, set[Key]] = {}
        self.services: dict[str, set[Key]] = {}

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        for key in change.gone:
            self.entries.pop(key, None)
        self.entries.update(change.put)
        for mine, moved, served in (
            (self.models, change.models, snapshot.models),
            (self.services, change.services, snapshot.services),
        ):
            for name, moves in moved.items():
                keys = mine.setdefault(name, set())
                for key, joins in moves.items():
                    (keys.add if joins else keys.discard)(key)
                if name not in served:
                    assert not keys
                    del mine[name]


class Changes(RuleBasedStateMachine):
    """Endpoints come, change and go while slices are made of a few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.small = small_slices()
        self.small.__enter__()
        self.loop = asyncio.new_event_loop()
        self.wanted: dict[Key, Entry] = {}
        self.replayed = Replayed()
        self.loads = Loads(clock=lambda: 0.0)
        self.links = Links(max_message_bytes=1)
        self.table = Table(loads=self.loads, policies=Policies(), default=POLICY, clock=lambda: 0.0)
        self.publisher = self.loop.run_until_complete(self.made())

    async def made(self) -> Publisher:
        made = Publisher()
        for follower in (
            self.replayed.follow,
            self.loads.follow,
            self.table.follow,
            self.links.follow,
        ):
            made.follow(follower)
        return made

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.loop.close()
            self.small.__exit__(None, None, None)

    @rule(
        key=KEYS,
        models=NAMES,
        services=NAMES,
        state=st.sampled_from(State),
        weight=st.integers(1, 2),
    )
    def put(self, key: Key, **fields: Any) -> None:
        self.wanted[key] = entry(key, **fields)
        self.publisher.put(self.wanted[key])

    @rule(key=KEYS)
    def drop(self, key: Key) -> None:
        self.wanted.pop(key, None)
        self.publisher.drop(key)

    @rule()
    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(key=KEYS)
    def wait_for_one(self, key: Key) -> None:
        self.loop.run_until_complete(self.publisher.shown(key))
        snapshot, wanted = self.publisher.snapshot, self.wanted.get(key)
        assert snapshot.entries.get(key) == wanted
        for served, names in (
            (snapshot.models, wanted.endpoint.models if wanted else ()),
            (snapshot.services, wanted.endpoint.services if wanted else ()),
        ):
            here = {name for name, keys in served.items() if key in keys}
            assert here == (set(names) if wanted and wanted.ready() else set())

    @rule()
    def settle(self) -> None:
        self.loop.run_until_complete(self.publisher.settled())
        rebuilt = build(self.wanted.values(), version=0)
        assert self.publisher.snapshot.entries == rebuilt.entries
        assert unordered(self.publisher.snapshot.models) == unordered(rebuilt.models)
        assert unordered(self.publisher.snapshot.services) == unordered(rebuilt.services)

    @invariant()
    def nobody_is_listed_who_does_not_serve_it(self) -> None:
        snapshot = self.publisher.snapshot
        rebuilt = build(snapshot.entries.values(), version=0)
        for served, may in (
            (snapshot.models, rebuilt.models),
            (snapshot.services, rebuilt.services),
        ):
            for name, keys in served.items():
                assert set(keys) <= set(may[name])
                assert len(set(keys)) == len(keys)

    @invariant()
    def who_follows_knows_the_same(self) -> None:
        snapshot, table = self.publisher.snapshot, self.table
        assert self.replayed.entries == dict(snapshot.entries)
        assert self.replayed.models == unordered(snapshot.models)
        assert self.replayed.services == unordered(snapshot.services)
        loads = {load.endpoint.key: load for load in self.loads}
        assert {key: load.endpoint for key, load in loads.items()} == {
            key: entry.endpoint for key, entry in snapshot.entries.items()
        }
        for plans, served in (
            (table._models.plans, snapshot.models),
            (table._services.plans, snapshot.services),
        ):
            assert {name: plan.loads for name, plan in plans.items()} == {
                name: tuple(loads[key] for key in keys) for name, keys in served.items() if keys
            }
            for plan in plans.values():
                assert set(plan.memory.turns) == set(plan.loads)
        assert {key for key, load in table._oip.items() if load is loads[key]} == {
            key
            for key, entry in snapshot.entries.items()
            if entry.ready() and entry.endpoint.protocol is Protocol.OIP
        }
        assert set(self.links._known) == {address for _, address in snapshot.entries}


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=30)


async def test_what_comes_together_is_one_snapshot_and_nothing_is_none() -> None:
    published = Publisher()
    for port in range(5):
        published.put(entry(("b", f"h:{port}"), models=("m",)))
    published.put(entry(("b", "h:0"), models=("n",)))
    await published.settled()
    assert published.snapshot.version == 1
    assert len(published.snapshot.models["m"]) == 4
    published.put(published.snapshot.entries["b", "h:1"])
    published.drop(("b", "h:9"))
    await published.settled()
    assert published.snapshot.models["n"] == (("b", "h:0"),)
    assert published.snapshot.version == 2


async def test_ten_thousand_names_of_one_endpoint_are_spread_over_many_snapshots() -> None:
    published = Publisher()
    sizes = []
    published.follow(lambda _, change: sizes.append(len(change.models)))
    models = tuple(f"m{number}" for number in range(10_000))
    published.put(entry(("b", "h:1"), models=models))
    await published.settled()
    assert len(published.snapshot.models) == sum(sizes) == 10_000
    assert max(sizes) <= publisher.SLICE_STEPS


async def test_who_registers_again_with_the_same_names_is_never_without_them() -> None:
    with small_slices():
        published = Publisher()
        seen: list[Snapshot] = []
        published.put(entry(("b", "h:1"), models=tuple("abcdef")))
        await published.settled()
        published.follow(lambda snapshot, _: seen.append(snapshot))
        published.put(entry(("b", "h:1"), models=tuple("abcdefg"), weight=2))
        await published.settled()
    assert {len(keys) for snapshot in seen for keys in snapshot.models.values()} == {1}
    assert len(seen[-1].models) == 7


async def test_a_follower_that_fails_is_told_of_and_holds_up_nobody() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    published = Publisher()

    def fail_once(snapshot: Snapshot, _: Change) -> None:
        if snapshot.version == 1:
            raise ValueError

    published.follow(fail_once)
    published.put(entry(("b", "h:1"), models=("m",)))
    await published.settled()
    assert len(told) == 1
    published.put(entry(("b", "h:2"), models=("m",)))
    await published.settled()
    assert len(published.snapshot.models["m"]) == 2


async def test_who_weighs_more_joins_anew_and_who_only_registers_again_does_not() -> None:
    published = Publisher()
    changes: list[Change] = []
    published.put(entry(("b", "h:1"), models=("m",)))
    await published.settled()
    published.follow(lambda _, change: changes.append(change))
    for weight in (1, 2):
        published.put(entry(("b", "h:1"), models=("m",), weight=weight))
        await published.settled()
    assert [dict(change.models) for change in changes[1:]] == [{}, {"m": {("b", "h:1"): True}}]
