"""The public keys that sign tokens, as an issuer publishes them: a JSON Web Key Set in a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import structlog

_log = structlog.get_logger(__name__)

EVERY_S = 1.0
# Who could check a signature of another kind could also make it.
_KINDS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
ALGORITHMS = tuple(name for names in _KINDS.values() for name in names)

# What tells a file from the one that was there before.
_Seen = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """Keys by `kid`; `only` is the one of a set of one, which need not be named."""

    keys: Mapping[str, jwt.PyJWK]
    only: jwt.PyJWK | None

    def of(self, kid: str | None) -> jwt.PyJWK | None:
        return self.only if kid is None else self.keys.get(kid)


def parse(text: str) -> KeySet:
    """Raises ValueError, with what is wrong."""
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError('has no keys: it must be a JSON Web Key Set, {"keys": [{"kty": ...}]}')
    found = [key for number, item in enumerate(listed, 1) if (key := _key(number, item))]
    if not found:
        raise ValueError("has no key for signatures")
    if len(found) == 1:
        only = found[0]
        return KeySet(keys={only.key_id: only} if only.key_id else {}, only=only)
    keys = {key.key_id: key for key in found if key.key_id}
    if len(keys) < len(found):
        raise ValueError("has several keys, so each must have a `kid`, and another one")
    return KeySet(keys=keys, only=None)


def _key(number: int, item: Any) -> jwt.PyJWK | None:
    """None for one that signs nothing. Raises ValueError."""
    kind = item.get("kty") if isinstance(item, dict) else None
    if kind not in _KINDS:
        raise ValueError(
            f"key {number} is of kind {kind!r}: only public keys of {', '.join(_KINDS)} can be "
            "used, for who knows another kind can sign tokens with it"
        )
    if "d" in item:
        raise ValueError(f"key {number} is a private key: only the issuer should have it")
    if item.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK(item)
    except jwt.PyJWTError as error:
        raise ValueError(f"key {number} cannot be used: {error}") from None


@dataclass(slots=True, kw_only=True)
class JwksFile:
    """A file of keys, read anew when it changes; one that is not in order changes nothing.

    Attributes:
        keys: as they were read last.
        problem: what is wrong with the file now; empty where nothing is.
    """

    path: Path
    keys: KeySet = field(default_factory=lambda: KeySet(keys={}, only=None))
    problem: str = ""
    _seen: _Seen | None = None
    _followers: list[Callable[[], None]] = field(default_factory=list)

    def follow(self, follower: Callable[[], None]) -> None:
        """`follower` is called when there are other keys."""
        self._followers.append(follower)

    def read(self) -> None:
        """Reads it now. Raises ValueError, OSError."""
        seen = self._look()
        self.keys = parse(self.path.read_text(encoding="utf-8"))
        self._seen = seen

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until it is cancelled."""
        while True:
            await sleep(EVERY_S)
            try:
                seen = await asyncio.to_thread(self._look)
                if seen == self._seen:
                    self._told("")
                    continue
                keys = parse(await asyncio.to_thread(self.path.read_text, encoding="utf-8"))
            except (OSError, ValueError) as error:
                self._told(str(error))
                continue
            self._seen, self.keys = seen, keys
            self._told("")
            for follower in self._followers:
                follower()
            _log.info(
                "keys that sign tokens are read anew", file=str(self.path), keys=len(keys.keys)
            )

    def _look(self) -> _Seen:
        found = self.path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _told(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.error(
                "auth.jwt.jwks_file is not in order: the keys read before stay",
                file=str(self.path),
                why=problem,
            )
        self.problem = problem
