"""The directory and the keys of tokens, kept as they are elsewhere for as long as a router runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity.directory import Directory
from aiflow_router.identity.following import Following
from aiflow_router.identity.jwks import JwksFile
from aiflow_router.storage.database import StorageError
from aiflow_router.tasks import begun, ended

_log = structlog.get_logger(__name__)

# A database that answers nobody does not hold up the end.
END_WITHIN_S = 2.0


@asynccontextmanager
async def keeping(
    directory: Directory, engine: AsyncEngine, *, jwks: JwksFile | None
) -> AsyncIterator[None]:
    """Reads all keys, then follows every change until the block ends. Raises StorageError."""
    following = Following(directory, engine)
    try:
        await following.load()
    except SQLAlchemyError as error:
        raise StorageError(f"tenants and keys cannot be read: {error}") from error
    works = [following.run(), following.hear(), following.write_used()]
    if jwks is not None:
        works.append(jwks.run())
    tasks = [begun(work, "following changes of keys") for work in works]
    try:
        yield
    finally:
        in_time = await ended(*tasks, within_s=END_WITHIN_S)
        try:
            async with asyncio.timeout(END_WITHIN_S if in_time else 0):
                await following.settle()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("when keys were last used is not written", why=str(error))
