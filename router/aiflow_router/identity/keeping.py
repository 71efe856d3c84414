"""The directory and the keys of tokens, kept as they are elsewhere for as long as a router runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity.directory import Directory
from aiflow_router.identity.following import Following
from aiflow_router.identity.jwks import JwksFile
from aiflow_router.storage.database import StorageError

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
    tasks = [_begun(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        _, late = await asyncio.wait(tasks, timeout=END_WITHIN_S)
        try:
            async with asyncio.timeout(0 if late else END_WITHIN_S):
                await following.settle()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("when keys were last used is not written", why=str(error))


def _begun(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("changes of keys are not followed any more", exc_info=error)
