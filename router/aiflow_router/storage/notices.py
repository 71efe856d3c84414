"""Word of changes from other processes, where the database passes it on (Postgres does)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_TELLS = "postgresql"
CHANNEL = "aiflow_changes"
# A connection that hears nothing for so long is tried: the server may be gone without a word.
SILENCE_S = 10.0
# With a server that is gone without a word.
PATIENCE: Mapping[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 10_000}


async def tell(connection: AsyncConnection) -> None:
    """Everybody hears of it when the transaction is committed."""
    if connection.dialect.name == _TELLS:
        await connection.execute(text(f"NOTIFY {CHANNEL}"))


def heard(engine: AsyncEngine) -> bool:
    """Whether this database tells anybody."""
    return engine.dialect.name == _TELLS


async def of(engine: AsyncEngine) -> AsyncIterator[None]:
    """Yields when somebody may have changed something, at first also.

    Raises OSError where the server cannot be heard.
    """
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, **PATIENCE)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            yield
            while True:
                async for _ in connection.notifies(timeout=SILENCE_S):
                    yield
                await connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise ConnectionError(str(error)) from error
