"""The living catalog: static endpoints and leases in, one snapshot out, followers told of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from aiflow_router.catalog.endpoint import Endpoint, Key, State
from aiflow_router.catalog.leases import Lease, Leases
from aiflow_router.catalog.snapshot import Entry, Snapshot, build
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

Follower = Callable[[Snapshot], None]


class Catalog:
    """Owns the current `snapshot`. Lives in one event loop; every method returns at once.

    Args:
        static: endpoints that are always there.
        leases: None where the catalog is only what is static.
    """

    def __init__(self, *, static: Iterable[Endpoint] = (), leases: Leases | None = None) -> None:
        self._static = tuple(static)
        self._leases = leases
        self._followers: list[Follower] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at_s = self._loop.time()
        self.snapshot = build(self._entries(), version=1)

    def follow(self, follower: Follower) -> None:
        """Calls `follower` with the current snapshot now and with each new one from here on."""
        self._followers.append(follower)
        follower(self.snapshot)

    def age_s(self) -> float:
        """Seconds since a server was last heard of; 0 where nothing is leased."""
        return self._loop.time() - self._heard_at_s if self._leases else 0.0

    def register(self, endpoint: Endpoint, *, ttl_s: float) -> Lease:
        """Raises RefusedError where the catalog is a static list, or the key is static."""
        leases = self._leased()
        if any(endpoint.key == static.key for static in self._static):
            raise errors.RefusedError(
                f"endpoint {endpoint.backend}@{endpoint.address} is listed under discovery.static "
                "in the router's aiflow.yaml; remove it there to register it",
                reason="ENDPOINT_STATIC",
            )
        lease = leases.register(endpoint, ttl_s=ttl_s, now_s=self._loop.time())
        _log.info(
            "endpoint registered",
            backend=endpoint.backend,
            address=endpoint.address,
            models=endpoint.models,
            services=endpoint.services,
            ttl_s=ttl_s,
        )
        self._changed()
        return lease

    def renew(self, lease_id: str, *, state: State) -> Lease:
        """Raises NotFoundError/LEASE_NOT_FOUND when the lease is not held."""
        lease = self._leased().renew(lease_id, state=state, now_s=self._loop.time())
        if lease is None:
            raise errors.NotFoundError(
                "this lease ran out or the router restarted: register again",
                reason="LEASE_NOT_FOUND",
            )
        self._heard_at_s = self._loop.time()
        if self.snapshot.entries[lease.endpoint.key].state is not state:
            _log.info("endpoint changed state", address=lease.endpoint.address, state=state.name)
            self._changed()
        return lease

    def deregister(self, lease_id: str) -> None:
        lease = self._leased().deregister(lease_id)
        if lease is not None:
            _log.info("endpoint deregistered", address=lease.endpoint.address)
            self._changed()

    def leases_left_s(self) -> Mapping[Key, float]:
        """Seconds to the expiry of each lease."""
        now_s = self._loop.time()
        return {
            lease.endpoint.key: max(0.0, lease.expires_at_s - now_s) for lease in self._leases or ()
        }

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leased(self) -> Leases:
        if self._leases is None:
            raise errors.RefusedError(
                "this router's catalog is the static list of its aiflow.yaml; add "
                "`embedded: {}` under `discovery` to let servers register",
                reason="REGISTRY_DISABLED",
            )
        return self._leases

    def _entries(self) -> list[Entry]:
        entries = [Entry(endpoint=endpoint, state=State.READY) for endpoint in self._static]
        entries += [
            Entry(endpoint=lease.endpoint, state=lease.state) for lease in self._leases or ()
        ]
        return entries

    def _changed(self) -> None:
        self._heard_at_s = self._loop.time()
        self.snapshot = build(self._entries(), version=self.snapshot.version + 1)
        self._arm()
        for follower in self._followers:
            follower(self.snapshot)

    def _arm(self) -> None:
        """Sets the one timer to the next expiry.

        A renewal only moves an expiry later, so the timer never fires too late; where it fires too
        early it is set again.
        """
        self.close()
        next_s = self._leases.next_expiry_s() if self._leases is not None else None
        if next_s is not None:
            self._timer = self._loop.call_at(next_s, self._expire)

    def _expire(self) -> None:
        leases = self._leased()
        # The loop fires up to its clock's resolution early; such a lease must go now, not later.
        expired = leases.expire(now_s=self._loop.time() + 0.001)
        for lease in expired:
            _log.warning(
                "endpoint expired: its lease was not renewed",
                backend=lease.endpoint.backend,
                address=lease.endpoint.address,
                ttl_s=lease.ttl_s,
            )
        if expired:
            self._changed()
        else:
            self._arm()
