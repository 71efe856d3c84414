"""Leases on a place in the catalog: pure bookkeeping, with the clock passed in as `now_s`.

A lease lives for `ttl_s` after its last renewal. It is out at that very moment, so an endpoint
whose server died is gone one ttl later at the latest.
"""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from aiflow_router.catalog.endpoint import Endpoint, Key, State

# Entries of the heap that nobody needs any more, beside as many as there are leases.
MAX_STALE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    id: str
    endpoint: Endpoint
    state: State
    ttl_s: float
    expires_at_s: float


class Leases:
    def __init__(self, *, new_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self._new_id = new_id
        self._by_key: dict[Key, Lease] = {}
        self._key_by_id: dict[str, Key] = {}
        # When to look at a lease again, soonest first. A renewal leaves it there: it only moves the
        # expiry later, and who looks too early puts the lease back at its new time. So a renewal
        # costs nothing here, and a lease has one entry that counts, the one in `_look_s`.
        self._heap: list[tuple[float, str]] = []
        self._look_s: dict[str, float] = {}

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def register(self, endpoint: Endpoint, *, ttl_s: float, now_s: float) -> Lease:
        """Takes the lease on the endpoint's key; who held it before keeps the same lease.

        Repeating a Register whose answer was lost must not invalidate the lease that was granted.
        """
        held = self._by_key.get(endpoint.key)
        lease = Lease(
            id=held.id if held else self._new_id(),
            endpoint=endpoint,
            state=State.READY,
            ttl_s=ttl_s,
            expires_at_s=now_s + ttl_s,
        )
        self._by_key[endpoint.key] = lease
        self._key_by_id[lease.id] = endpoint.key
        look_s = self._look_s.get(lease.id)
        if look_s is None or lease.expires_at_s < look_s:
            self._look_at(lease)
        return lease

    def held(self, lease_id: str) -> Lease | None:
        """The lease, also where it ran out and was not taken away yet."""
        key = self._key_by_id.get(lease_id)
        return None if key is None else self._by_key[key]

    def renew(self, lease_id: str, *, state: State, now_s: float) -> Lease | None:
        """The renewed lease; None when it is not held (any more)."""
        held = self.held(lease_id)
        if held is None or held.expires_at_s <= now_s:
            return None
        lease = replace(held, state=state, expires_at_s=now_s + held.ttl_s)
        self._by_key[held.endpoint.key] = lease
        return lease

    def deregister(self, lease_id: str) -> Lease | None:
        """The lease given back; None when it was not held."""
        key = self._key_by_id.pop(lease_id, None)
        if key is None:
            return None
        del self._look_s[lease_id]
        return self._by_key.pop(key)

    def expire(self, *, now_s: float, at_most: int | None = None) -> tuple[Lease, ...]:
        """Removes and returns leases that ran out, `at_most` so many of them."""
        out: list[Lease] = []
        while len(out) != at_most and (lease := self._next()) and lease.expires_at_s <= now_s:
            self.deregister(lease.id)
            out.append(lease)
        return tuple(out)

    def next_expiry_s(self) -> float | None:
        lease = self._next()
        return None if lease is None else lease.expires_at_s

    def _next(self) -> Lease | None:
        """The lease that runs out first."""
        while self._heap:
            at_s, lease_id = self._heap[0]
            if self._look_s.get(lease_id) != at_s:  # Given back, or there with an earlier time.
                heapq.heappop(self._heap)
                continue
            lease = self._by_key[self._key_by_id[lease_id]]
            if lease.expires_at_s == at_s:
                return lease
            heapq.heapreplace(self._heap, (lease.expires_at_s, lease_id))
            self._look_s[lease_id] = lease.expires_at_s
        return None

    def _look_at(self, lease: Lease) -> None:
        self._look_s[lease.id] = lease.expires_at_s
        heapq.heappush(self._heap, (lease.expires_at_s, lease.id))
        if len(self._heap) > 2 * len(self._look_s) + MAX_STALE:
            self._heap = [(at_s, lease_id) for lease_id, at_s in self._look_s.items()]
            heapq.heapify(self._heap)
