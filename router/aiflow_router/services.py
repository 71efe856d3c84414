"""The services that the router answers itself: as its own, or passed on to who owns them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.catalog.mirror import Mirror
from aiflow_router.explaining.explainer import Explainer
from aiflow_router.explaining.limits import Limits
from aiflow_router.parts import CLOCK, Parts
from aiflow_router.policy.guards import Changing
from aiflow_router.policy.keeping import Watched, keeping
from aiflow_router.rpc import explain, policy, registry, tenancy
from aiflow_router.rpc.watch import Closing, Relays, Watchers
from aiflow_router.running import Shared


def registering(made: Parts, shared: Shared | None) -> tuple[Watchers | Relays, registry.Handlers]:
    """Who watches, and the handlers of RegistryService."""
    catalog, census, loads = made.catalog, made.census, made.loads
    if isinstance(catalog, Mirror):
        assert shared is not None  # noqa: S101 - a mirror is somebody's
        relays = Relays(shared.owner, registry.WATCH)
        return relays, registry.relayed(made.front, owner=shared.owner, relays=relays)

    async def seen() -> registry.Seen:
        return lambda endpoint: (census.state(endpoint), loads[endpoint].inflight)

    watchers = Watchers()
    catalog.follow(watchers.follow)
    own = registry.Registry(catalog=catalog, seen=seen, shown=catalog.shown)
    return watchers, registry.handlers(made.front, registry=own, watchers=watchers)


def explaining(made: Parts, shared: Shared | None) -> registry.Handlers:
    """Each process explains itself; of the others it knows through their owner."""
    front = made.front
    explainer = Explainer(
        table=front.table,
        snapshot=lambda: made.catalog.snapshot,
        loads=made.loads,
        kinds=made.kinds,
        clock=CLOCK,
    )
    admission = front.admission
    limits = Limits(
        rules=lambda: admission.rules,
        buckets=admission.buckets,
        lines=admission.waiting.lines,
        clock=CLOCK,
    )
    if shared is None:
        return explain.handlers(front, explainer=explainer, limits=limits, journal=made.journal)
    return explain.shared(
        front, explainer=explainer, limits=limits, owner=shared.owner, worker=shared.name
    )


@asynccontextmanager
async def administering(
    made: Parts, *, watched: Watched | None, shared: Shared | None
) -> AsyncIterator[tuple[Closing, registry.Handlers, Changing]]:
    """Who watches, the handlers of PolicyService, and the desk where the policy is changed."""
    front = made.front
    if shared is not None:
        relays = Relays(shared.owner, policy.WATCH)
        handlers = policy.relayed(front, owner=shared.owner, relays=relays)
        yield relays, handlers, policy.OwnersDesk(shared.owner)
        return
    async with keeping(made.policies, running=lambda: made.config, watched=watched) as kept:
        if (store := kept.store) is not None:
            made.metrics.watch_policy_store(lambda: store.age_s)
        service = policy.Service(kept.desk)
        yield service, policy.handlers(front, service=service), kept.desk


def tenants(made: Parts, engine: AsyncEngine | None, shared: Shared | None) -> registry.Handlers:
    """The handlers of TenancyService."""
    if shared is not None:
        return tenancy.relayed(made.front, owner=shared.owner)
    directory = made.identity.directory
    everywhere = None if directory is None else directory.reached
    return tenancy.handlers(made.front, service=tenancy.service(engine, everywhere=everywhere))
