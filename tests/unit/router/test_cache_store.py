"""The store: never above its bytes, never too old, never another key's."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiflow_router.caching.cache import key_of
from aiflow_router.caching.store import ENTRY_BYTES, LARGEST_SHARE, Store

TTL_S = 10.0
MAX_BYTES = 16 * ENTRY_BYTES
LARGEST_BYTES = int(MAX_BYTES * LARGEST_SHARE) - ENTRY_BYTES
KEYS = st.sampled_from([bytes([number]) for number in range(20)])


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def store(clock: Clock | None = None) -> Store[str]:
    return Store(ttl_s=TTL_S, max_bytes=MAX_BYTES, clock=clock or Clock())


class Model(RuleBasedStateMachine):
    """Beside what was put where and when, the store may only forget."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = store(self.clock)
        self.put: dict[bytes, tuple[str, float]] = {}
        self.puts = 0

    @rule(key=KEYS, size_bytes=st.integers(0, LARGEST_BYTES + 2))
    def puts_one(self, key: bytes, size_bytes: int) -> None:
        self.puts += 1
        value = f"{key!r} of put {self.puts}"
        kept = self.store.put(key, value, size_bytes=size_bytes)
        assert kept == (size_bytes <= LARGEST_BYTES)
        # One that is too large is a newer answer all the same: the older one is not given again.
        self.put.pop(key, None)
        if kept:
            self.put[key] = (value, self.clock.now_s)
            assert self.store.get(key) == (value, 0.0)

    @rule(key=KEYS)
    def gets_one(self, key: bytes) -> None:
        found = self.store.get(key)
        if found is not None:
            value, at_s = self.put[key]
            age_s = self.clock.now_s - at_s
            assert found == (value, age_s)
            assert age_s < TTL_S

    @rule(seconds=st.floats(0, TTL_S * 1.5))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def no_more_than_its_bytes(self) -> None:
        assert len(self.store) * ENTRY_BYTES <= self.store.size_bytes <= MAX_BYTES


TestModel = Model.TestCase


def test_who_was_asked_for_longest_ago_goes_first() -> None:
    kept = store()
    for number in range(16):
        kept.put(bytes([number]), "v", size_bytes=0)
    assert kept.get(b"\x00") is not None
    kept.put(b"new", "v", size_bytes=ENTRY_BYTES)
    assert [kept.get(bytes([number])) is None for number in range(4)] == [False, True, True, False]
    assert kept.evicted == {"full": 2}


def test_at_its_age_it_is_gone_and_its_room_is_free() -> None:
    clock = Clock()
    kept = store(clock)
    kept.put(b"k", "v", size_bytes=10)
    clock.now_s += TTL_S - 0.001
    assert kept.get(b"k") is not None
    clock.now_s += 0.001
    assert (kept.get(b"k"), kept.size_bytes, kept.evicted) == (None, 0, {"expired": 1})


def test_to_be_asked_for_makes_nothing_younger() -> None:
    clock = Clock()
    kept = store(clock)
    kept.put(b"k", "v", size_bytes=10)
    for _ in range(3):
        clock.now_s += TTL_S / 2.5
        kept.get(b"k")
    assert kept.get(b"k") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("t", "m", "1", b"r"), ("u", "m", "1", b"r"), id="tenants"),
        pytest.param(("t", "m", "1", b"r"), ("t", "n", "1", b"r"), id="models"),
        pytest.param(("t", "m", "1", b"r"), ("t", "m", "2", b"r"), id="versions"),
        pytest.param(("t", "m", "1", b"r"), ("t", "m", "1", b"s"), id="requests"),
        pytest.param(("t", "mn", "", b""), ("t", "m", "n", b""), id="names that join alike"),
        pytest.param(("t', 'm", "", "", b""), ("t", "m', '", "", b""), id="names with quotes"),
    ],
)
def test_calls_differ_by(
    one: tuple[str, str, str, bytes], other: tuple[str, str, str, bytes]
) -> None:
    keys = [
        key_of(request, tenant=tenant, model=model, version=version)
        for tenant, model, version, request in (one, other, one)
    ]
    assert keys[0] == keys[2] != keys[1]
