"""Leases: whoever renews stays, whoever falls silent is out one ttl later."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.leases import MAX_STALE, Leases
from aiflow_router.catalog.snapshot import Entry, build


def endpoint(port: int = 1, **changes: object) -> Endpoint:
    fields = {"backend": "b", "address": f"h:{port}", "protocol": Protocol.OIP, "models": ("m",)}
    return Endpoint(**{**fields, **changes})  # type: ignore[arg-type]


def leases() -> Leases:
    ids = itertools.count()
    return Leases(new_id=lambda: f"lease-{next(ids)}")


def test_registering_again_keeps_the_lease_and_replaces_what_is_known() -> None:
    table = leases()
    first = table.register(endpoint(), ttl_s=2, now_s=0)
    again = table.register(endpoint(models=("n",)), ttl_s=2, now_s=1)
    assert first.id == again.id
    assert [lease.endpoint.models for lease in table] == [("n",)]
    assert table.renew(first.id, state=State.READY, now_s=2.5) is not None


def test_a_lease_that_ran_out_cannot_be_renewed() -> None:
    table = leases()
    lease = table.register(endpoint(), ttl_s=2, now_s=0)
    assert table.renew(lease.id, state=State.READY, now_s=2) is None
    assert [gone.id for gone in table.expire(now_s=2)] == [lease.id]
    assert table.renew(lease.id, state=State.READY, now_s=2) is None
    assert table.deregister(lease.id) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "renew", "deregister", "wait"]),
            st.integers(1, 3),
            st.floats(0, 1.5),
        ),
        max_size=40,
    )
)
def test_what_is_there_is_what_was_heard_of_within_its_ttl(
    steps: list[tuple[str, int, float]],
) -> None:
    table, now_s = leases(), 0.0
    heard: dict[int, float] = {}
    ids: dict[int, str] = {}
    for what, port, wait_s in steps:
        now_s += wait_s
        table.expire(now_s=now_s)
        heard = {port: at_s for port, at_s in heard.items() if at_s + 2 > now_s}
        if what == "register":
            ids[port] = table.register(endpoint(port), ttl_s=2, now_s=now_s).id
            heard[port] = now_s
        elif what == "renew" and port in ids:
            renewed = table.renew(ids[port], state=State.READY, now_s=now_s)
            assert (renewed is not None) == (port in heard)
            if renewed:
                heard[port] = now_s
        elif what == "deregister" and port in ids:
            table.deregister(ids[port])
            heard.pop(port, None)
        assert {lease.endpoint.address for lease in table} == {f"h:{port}" for port in heard}
        expected = min((at_s + 2 for at_s in heard.values()), default=None)
        assert table.next_expiry_s() == expected


class Naive:
    """Leases as a list that is searched."""

    def __init__(self) -> None:
        self.expires_at_s: dict[int, float] = {}

    def expire(self, now_s: float) -> set[int]:
        out = {port for port, at_s in self.expires_at_s.items() if at_s <= now_s}
        for port in out:
            del self.expires_at_s[port]
        return out


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "renew", "deregister", "expire"]),
            st.integers(1, 4),
            st.sampled_from([0.5, 2.0, 60.0]),
            st.floats(0, 3),
        ),
        max_size=60,
    )
)
def test_the_heap_expires_what_a_search_would(
    steps: list[tuple[str, int, float, float]],
) -> None:
    table, naive, now_s = leases(), Naive(), 0.0
    ids: dict[int, str] = {}
    for what, port, ttl_s, wait_s in steps:
        now_s += wait_s
        if what == "register":
            ids[port] = table.register(endpoint(port), ttl_s=ttl_s, now_s=now_s).id
            naive.expires_at_s[port] = now_s + ttl_s
        elif what == "renew" and port in ids:
            lease = table.renew(ids[port], state=State.READY, now_s=now_s)
            assert (lease is not None) == (naive.expires_at_s.get(port, 0.0) > now_s)
            if lease is not None:
                naive.expires_at_s[port] = lease.expires_at_s
        elif what == "deregister" and port in ids:
            table.deregister(ids[port])
            naive.expires_at_s.pop(port, None)
        elif what == "expire":
            first = table.expire(now_s=now_s, at_most=1)
            assert len(first) <= 1
            out = {lease.endpoint.address for lease in (*first, *table.expire(now_s=now_s))}
            assert out == {f"h:{port}" for port in naive.expire(now_s)}
        assert table.next_expiry_s() == min(naive.expires_at_s.values(), default=None)


def test_memory_stays_bounded_however_often_leases_are_renewed_or_taken_anew() -> None:
    table, now_s = leases(), 0.0
    held = [table.register(endpoint(port), ttl_s=60, now_s=now_s) for port in range(100)]
    for turn in range(200):
        now_s += 0.4
        for port, lease in enumerate(held):
            if turn % 2:
                table.register(endpoint(port), ttl_s=60 if turn % 4 == 1 else 0.5, now_s=now_s)
            else:
                assert table.renew(lease.id, state=State.READY, now_s=now_s) is not None
        table.expire(now_s=now_s)
        assert len(table._heap) <= 2 * len(held) + MAX_STALE
    for lease in held:
        table.deregister(lease.id)
    assert table.next_expiry_s() is None
    assert not table._heap


def test_a_snapshot_routes_to_ready_endpoints_and_remembers_the_names_of_draining_ones() -> None:
    typed = endpoint(3, protocol=Protocol.GRPC, models=(), services=("a.B",))
    snapshot = build(
        [
            Entry(endpoint=endpoint(2), state=State.READY),
            Entry(endpoint=endpoint(1, models=("m", "only")), state=State.DRAINING),
            Entry(endpoint=typed, state=State.READY),
        ],
        version=7,
    )
    assert snapshot.models["m"] == (("b", "h:2"),)
    assert snapshot.models["only"] == ()
    assert snapshot.services["a.B"] == (typed.key,)
    assert {address for _, address in snapshot.entries} == {"h:1", "h:2", "h:3"}
