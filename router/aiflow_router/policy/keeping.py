"""The sources of the policy, followed for as long as the router runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from aiflow_router.config.config import Config
from aiflow_router.config.policy import ConsulKV
from aiflow_router.policy.consul import Store
from aiflow_router.policy.desk import Desk
from aiflow_router.policy.edition import Edition, edition
from aiflow_router.policy.file import File, Read
from aiflow_router.policy.policies import Policies
from aiflow_router.tasks import beside
from aiflow_sdk.consul import Consul

_log = structlog.get_logger(__name__)

# How long a start waits for Consul before it goes on with the file's policy.
CONSUL_WITHIN_S = 5.0
FOLLOWING = "following a source of the policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A configuration file, which may not be there yet; `read` reads it with flags on top."""

    path: Path
    read: Read


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What keeps the policy; `file` is None where no file is watched, as `store` without a key."""

    desk: Desk
    file: File | None
    store: Store | None


def of_the_file(config: Config, *, origin: str, since_s: float) -> Edition:
    """The policy that a router begins with."""
    return edition(config.policy_document(), source="file", origin=origin, since_s=since_s)


@asynccontextmanager
async def keeping(
    policies: Policies, *, running: Callable[[], Config], watched: Watched | None
) -> AsyncIterator[Kept]:
    """Follows all sources until the block ends; it begins with what Consul has, if it answers.

    Args:
        policies: where the changes go.
        running: the configuration that the router runs by.
        watched: None where there is no file.
    """
    async with AsyncExitStack() as stack:
        file = None
        if watched is not None:
            file = File(watched.path, watched.read, running=running, policies=policies)
        store = None
        if (kv := running().policy.consul_kv) is not None:
            found = kv.reached(running().discovery.consul)
            consul = await stack.enter_async_context(_consul(found))
            store = Store(consul, kv.key, policies=policies, running=running)
            await stack.enter_async_context(beside(store.run(), FOLLOWING))
            try:
                async with asyncio.timeout(CONSUL_WITHIN_S):
                    await store.began.wait()
            except TimeoutError:
                _log.warning("Consul does not say its policy: begins without", key=kv.key)
        if file is not None:
            await stack.enter_async_context(beside(file.run(), FOLLOWING))
        yield Kept(desk=Desk(policies, running=running, shelf=store), file=file, store=store)


def _consul(kv: ConsulKV) -> Consul:
    assert kv.address is not None  # noqa: S101 - see ConsulKV.reached
    return Consul(
        kv.address,
        token_file=kv.token_file,
        datacenter=kv.datacenter or "",
        ca=kv.tls.ca,
        cert=kv.tls.cert,
        key=kv.tls.key,
    )
