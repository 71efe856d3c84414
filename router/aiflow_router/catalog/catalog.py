"""The living catalog: static endpoints, and leases or what Consul tells in, snapshots out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from aiflow_router.catalog.endpoint import Endpoint, Key, State
from aiflow_router.catalog.leases import Lease, Leases
from aiflow_router.catalog.publisher import Follower, Publisher
from aiflow_router.catalog.snapshot import Entry, Snapshot
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

# Where a network fails thousands of leases may run out at one moment: so many are taken away at
# once, and so many get a line of their own in the log, which costs more than all the rest.
EXPIRE_AT_ONCE = 100
LOGGED_AT_ONCE = 5
LOGGED_NAMES = 20


class Catalog:
    """Lives in one event loop. A change is in the snapshot soon, see `shown`.

    Args:
        static: endpoints that are always there.
        leases: None where nothing can register here.
        source: where further endpoints come from, who tells them by `found` and `lost`; empty
            where they come from nowhere.
    """

    def __init__(
        self,
        *,
        static: Iterable[Endpoint] = (),
        leases: Leases | None = None,
        source: str = "",
    ) -> None:
        self._leases = leases
        self._source = source
        self._source_age_s: Callable[[], float] | None = None
        self._found: dict[Key, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at_s = self._loop.time()
        self._publisher = Publisher()
        static = tuple(static)
        self._static = frozenset(endpoint.key for endpoint in static)
        for endpoint in static:
            self._publisher.put(Entry(endpoint=endpoint, state=State.READY))

    @property
    def snapshot(self) -> Snapshot:
        return self._publisher.snapshot

    def follow(self, follower: Follower) -> None:
        """Calls `follower` with the current snapshot now and with each new one from here on."""
        self._publisher.follow(follower)

    async def shown(self, key: Key) -> None:
        """Returns when all that was said of `key` so far is in the snapshot."""
        await self._publisher.shown(key)

    async def settled(self) -> None:
        """Returns when all that was said so far is in the snapshot."""
        await self._publisher.settled()

    def age_s(self) -> float:
        """Seconds since a server or the source was last heard; 0 where there is neither."""
        if self._source_age_s is not None:
            return self._source_age_s()
        return self._loop.time() - self._heard_at_s if self._leases else 0.0

    def aged_by(self, age_s: Callable[[], float]) -> None:
        """The source knows how old its view is."""
        self._source_age_s = age_s

    def found(self, entry: Entry) -> None:
        """The source has this endpoint. What is listed stays as it is listed."""
        key = entry.endpoint.key
        self._found[key] = entry
        if key not in self._static:
            self._publisher.put(entry)

    def lost(self, key: Key) -> None:
        """The source has this endpoint no more."""
        if self._found.pop(key, None) is not None and key not in self._static:
            self._publisher.drop(key)

    def register(self, endpoint: Endpoint, *, ttl_s: float) -> Lease:
        """Raises RefusedError where the catalog is a static list, or the key is static."""
        leases = self._leased()
        if endpoint.key in self._static:
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
            models=_some(endpoint.models),
            services=_some(endpoint.services),
            ttl_s=ttl_s,
        )
        self._show(lease)
        self._arm()
        return lease

    def renew(self, lease_id: str, *, state: State) -> Lease:
        """Raises NotFoundError/LEASE_NOT_FOUND when the lease is not held."""
        leases = self._leased()
        before = leases.held(lease_id)
        lease = leases.renew(lease_id, state=state, now_s=self._loop.time())
        if lease is None or before is None:
            raise errors.NotFoundError(
                "this lease ran out or the router restarted: register again",
                reason="LEASE_NOT_FOUND",
            )
        self._heard_at_s = self._loop.time()
        if before.state is not state:
            _log.info("endpoint changed state", address=lease.endpoint.address, state=state.name)
            self._show(lease)
        return lease

    def deregister(self, lease_id: str) -> Lease | None:
        """The lease given back; None when it was not held."""
        lease = self._leased().deregister(lease_id)
        if lease is not None:
            _log.info("endpoint deregistered", address=lease.endpoint.address)
            self._heard_at_s = self._loop.time()
            self._publisher.drop(lease.endpoint.key)
        return lease

    def list_static(self, static: Iterable[Endpoint]) -> None:
        """Replaces the endpoints that are always there; one that stays is not disturbed.

        What was registered and is listed now gives its lease up.
        """
        listed = {endpoint.key: endpoint for endpoint in static}
        entries = self.snapshot.entries
        for lease in tuple(self._leases or ()):
            if self._leases is not None and lease.endpoint.key in listed:
                self._leases.deregister(lease.id)
        for key in self._static - listed.keys():
            if key in self._found:
                self._publisher.put(self._found[key])
            else:
                self._publisher.drop(key)
        for key, endpoint in listed.items():
            entry = Entry(endpoint=endpoint, state=State.READY)
            if key not in self._static or entries.get(key) != entry:
                self._publisher.put(entry)
        self._static = frozenset(listed)

    def leases_left_s(self) -> Mapping[Key, float]:
        """Seconds to the expiry of each lease."""
        now_s = self._loop.time()
        return {
            lease.endpoint.key: max(0.0, lease.expires_at_s - now_s) for lease in self._leases or ()
        }

    def close(self) -> None:
        self._publisher.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leased(self) -> Leases:
        if self._leases is None and self._source:
            raise errors.RefusedError(
                f"this router finds its endpoints in {self._source}; register there",
                reason="REGISTRY_DISABLED",
            )
        if self._leases is None:
            raise errors.RefusedError(
                "this router's catalog is the static list of its aiflow.yaml; add "
                "`embedded: {}` under `discovery` to let servers register",
                reason="REGISTRY_DISABLED",
            )
        return self._leases

    def _show(self, lease: Lease) -> None:
        self._heard_at_s = self._loop.time()
        self._publisher.put(Entry(endpoint=lease.endpoint, state=lease.state))

    def _arm(self) -> None:
        """Sets the one timer to the next expiry.

        Only a Register can bring an expiry forward, so the timer never fires too late; where it
        fires too early it is set again.
        """
        next_s = self._leased().next_expiry_s()
        if self._timer is not None and (next_s is None or next_s < self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and next_s is not None:
            self._timer = self._loop.call_at(next_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        # The loop fires up to its clock's resolution early; such a lease must go now, not later.
        expired = self._leased().expire(now_s=self._loop.time() + 0.001, at_most=EXPIRE_AT_ONCE)
        for lease in expired:
            self._publisher.drop(lease.endpoint.key)
        for lease in expired[:LOGGED_AT_ONCE]:
            _log.warning(
                "endpoint expired: its lease was not renewed",
                backend=lease.endpoint.backend,
                address=lease.endpoint.address,
                ttl_s=lease.ttl_s,
            )
        if len(expired) > LOGGED_AT_ONCE:
            _log.warning(
                "more endpoints expired at the same time",
                count=len(expired) - LOGGED_AT_ONCE,
                backends=sorted({lease.endpoint.backend for lease in expired})[:LOGGED_NAMES],
            )
        self._arm()


def _some(names: Sequence[str]) -> Sequence[str]:
    """For the log, where nobody reads thousands of them."""
    more = len(names) - LOGGED_NAMES
    return names if more <= 0 else (*names[:LOGGED_NAMES], f"... and {more} more")
