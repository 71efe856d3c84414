"""What is kept in the database while a router runs: keys, what quotas and calls use, credits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.sweeper import Sweeper
from aiflow_router.accounts.usage import Usage
from aiflow_router.config.config import Config
from aiflow_router.identity import first_key
from aiflow_router.identity.keeping import keeping
from aiflow_router.limits import kept_quotas
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Rule
from aiflow_router.parts import Identity, Parts
from aiflow_router.rpc.admission import Admission
from aiflow_router.storage.database import opened
from aiflow_router.tasks import begun, ended
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def everything(made: Parts, *, first: bool) -> AsyncIterator[AsyncEngine | None]:
    """The database until the block ends, and all that is kept there, where there is one.

    Args:
        made: what is kept as the database is, and what is written there.
        first: as `storage` has it.

    Raises StorageError.
    """
    admission, metrics = made.front.admission, made.metrics
    async with (
        storage(made.config, first=first, identity=made.identity) as engine,
        accounts(engine, admission=admission, journal=made.journal, metrics=metrics),
        quotas(admission, engine, metrics),
    ):
        yield engine


@asynccontextmanager
async def storage(
    config: Config, *, first: bool, identity: Identity | None = None
) -> AsyncIterator[AsyncEngine | None]:
    """The database until the block ends, None where there is none. Raises StorageError.

    Args:
        config: the router's.
        first: sees to it that there is an admin's key: one of several processes does.
        identity: is kept as the database is.
    """
    if config.storage is None:
        yield None
        return
    async with opened(config.storage.url) as engine:
        if first:
            file = config.auth.admin_key_file
            await first_key.make(engine, Path(file) if file else first_key.default_path(engine))
        if identity is None or identity.directory is None:
            yield engine
            return
        async with keeping(identity.directory, engine, jwks=identity.jwks):
            yield engine


@asynccontextmanager
async def accounts(
    engine: AsyncEngine | None, *, admission: Admission, journal: Journal, metrics: Metrics
) -> AsyncIterator[Ledger | None]:
    """Lets calls pay, and adds up what they use, until the block ends; where there is a database.

    Then what is left is written.
    """
    if engine is None:
        yield None
        return
    ledger, usage = Ledger(engine), Usage(engine)
    metrics.watch_accounts(ledger, usage)
    admission.payments.ledger = ledger
    journal.also = usage.add
    writing = begun(ledger.run(), "writing the ledger")
    sweeping = begun(Sweeper(ledger).run(), "giving back what was held too long")
    adding = begun(usage.run(), "writing what is used")
    try:
        yield ledger
    finally:
        await ended(sweeping, adding)
        await usage.close()
        await ledger.close()
        await ended(writing)


@asynccontextmanager
async def quotas(
    admission: Admission, engine: AsyncEngine | None, metrics: Metrics
) -> AsyncIterator[None]:
    """Keeps what is used of quotas until the block ends, where there is a database for it.

    Raises StorageError.
    """
    if engine is None or not isinstance(admission.buckets, Memory):
        yield
        return
    async with kept_quotas.keeping(admission.buckets, engine) as kept:
        metrics.watch_quotas(kept.age_s)
        yield


def warn_of_quotas(rules: Iterable[Rule], *, kept: bool) -> None:
    """Says which quotas begin anew with each start of the router, for nothing keeps them."""
    lost = [rule.name for rule in rules if rule.kind in ("day", "month") and rule.mode != "off"]
    if lost and not kept:
        _log.warning(
            "these quotas begin anew when the router does: set `storage` to have them kept",
            limits=lost,
        )
