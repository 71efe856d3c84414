"""An API key as its owner has it: `aif_1a2b3c4d_` and a secret of 256 bits.

The beginning is its id, which is no secret: lists, logs and errors name a key by it. Of the whole
only the SHA-256 is kept. A slow hash would add nothing: what is random cannot be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.storage.tables.tenancy import KEYS

PREFIX = "aif_"
_ID_BYTES = 4
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """A new key.

    Attributes:
        key: its id.
        text: the whole, to be shown once and kept nowhere.
        sha256: of the whole, to be kept.
    """

    key: str
    text: str = field(repr=False)
    sha256: bytes = field(repr=False)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def mint(draw: Callable[[int], bytes] = secrets.token_bytes) -> Minted:
    """A key at random; another one may have its id already, see `minted`."""
    key = PREFIX + draw(_ID_BYTES).hex()
    text = f"{key}_{base64.urlsafe_b64encode(draw(_SECRET_BYTES)).rstrip(b'=').decode()}"
    return Minted(key=key, text=text, sha256=digest(text))


async def minted(
    connection: AsyncConnection, draw: Callable[[int], bytes] = secrets.token_bytes
) -> Minted:
    """A key whose id no other has, in a transaction of `database.changing`."""
    while True:
        found = mint(draw)
        taken = select(KEYS.c.key).where(KEYS.c.key == found.key)
        if (await connection.execute(taken)).first() is None:
            return found
