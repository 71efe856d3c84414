"""Secrets that are shown once, beside keys: codes of invitations, secrets of applications.

Each is KIND_ID_SECRET. The id is no secret, so that people can speak of it; of the whole only the
SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Column, select
from sqlalchemy.ext.asyncio import AsyncConnection

# 128 bits: guessing is hopeless at any rate, and a code can still be read out.
CODE_BYTES = 16
SECRET_BYTES = 32
_ID_BYTES = 4
_SHAPE = re.compile(r"[A-Za-z0-9_-]{20,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """A new secret; `id` is its visible beginning, `secret` the whole."""

    id: str
    secret: str = field(repr=False)
    sha256: bytes = field(repr=False)


Mint = Callable[[], Minted]


def minted(kind: str, length: int) -> Minted:
    """A new secret with `length` bytes of it random."""
    found = f"{kind}_{secrets.token_hex(_ID_BYTES)}"
    secret = f"{found}_{secrets.token_urlsafe(length)}"
    return Minted(id=found, secret=secret, sha256=digest(secret))


def invitation() -> Minted:
    return minted("inv", CODE_BYTES)


def application() -> Minted:
    return minted("app", SECRET_BYTES)


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def plausible(secret: str) -> bool:
    """Whether it is worth asking the database: what has another shape is not ours."""
    return _SHAPE.fullmatch(secret) is not None


async def fresh(connection: AsyncConnection, mint: Mint, ids: Column[str]) -> Minted:
    """A secret whose id no other has; in a transaction of `database.changing`."""
    while True:
        found = mint()
        taken = await connection.execute(select(ids).where(ids == found.id))
        if taken.first() is None:
            return found
