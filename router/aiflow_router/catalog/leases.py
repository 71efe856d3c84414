"""Leases on a place in the catalog: pure bookkeeping, with the clock passed in as `now_s`.

A lease lives for `ttl_s` after its last renewal. It is out at that very moment, so an endpoint
whose server died is gone one ttl later at the latest.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from aiflow_router.catalog.endpoint import Endpoint, Key, State


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
        return lease

    def renew(self, lease_id: str, *, state: State, now_s: float) -> Lease | None:
        """The renewed lease; None when it is not held (any more)."""
        key = self._key_by_id.get(lease_id)
        if key is None:
            return None
        held = self._by_key[key]
        if held.expires_at_s <= now_s:
            return None
        lease = replace(held, state=state, expires_at_s=now_s + held.ttl_s)
        self._by_key[key] = lease
        return lease

    def deregister(self, lease_id: str) -> Lease | None:
        """The lease given back; None when it was not held."""
        key = self._key_by_id.pop(lease_id, None)
        return None if key is None else self._by_key.pop(key)

    def expire(self, *, now_s: float) -> tuple[Lease, ...]:
        """Removes and returns the leases that ran out."""
        out = tuple(lease for lease in self if lease.expires_at_s <= now_s)
        for lease in out:
            self.deregister(lease.id)
        return out

    def next_expiry_s(self) -> float | None:
        return min((lease.expires_at_s for lease in self), default=None)
