"""Who sent a key: those of aiflow.yaml, then whatever else knows keys.

Keys are known only by their SHA-256, so that neither a file nor a log can give one away. Looking up
the hash of what was sent takes no time that depends on how much of a key was right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiflow_router.identity.caller import ANONYMOUS, ANYBODY, Caller, Needs, Right
from aiflow_sdk import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as it is configured; `sha256` is that of the key, in hex."""

    name: str
    tenant: str
    sha256: str
    may: frozenset[Right]


class Source(Protocol):
    def find(self, key: str, digest: bytes) -> Caller | None:
        """Whose key it is, None where it is not known here.

        Raises AuthenticationError for one that is known and not good.
        """


class Keys:
    def __init__(
        self, records: Iterable[KeyRecord], *, required: bool, sources: Sequence[Source] = ()
    ) -> None:
        """`sources` are asked in this order for a key that is none of `records`."""
        self._required = required
        self._sources = sources
        self._by_digest = {
            bytes.fromhex(record.sha256): Caller(
                name=record.name,
                tenant=record.tenant,
                may=record.may,
                key=record.name,
                role="platform_admin" if "admin" in record.may else "member",
            )
            for record in records
        }
        self._anonymous = ANONYMOUS if self._by_digest or sources else ANYBODY

    def identify(self, key: str, right: Needs) -> Caller:
        """Who sent `key` (empty for none). Raises AuthenticationError, PermissionDeniedError."""
        if not key:
            wanted = "admin" if right == "key" else right
            if not self._required and wanted in self._anonymous.may:
                return self._anonymous
            asks = "this router asks" if self._required else f"to {wanted}, this router asks"
            first = ""
            if self._sources and wanted == "admin":
                first = "; its first start left an admin's in a file beside its database"
            raise errors.AuthenticationError(
                f"{asks} for an API key: send it as metadata "
                f"`authorization: Bearer KEY` or `x-api-key: KEY` (or set AIFLOW_API_KEY){first}"
            )
        digest = hashlib.sha256(key.encode()).digest()
        caller = self._by_digest.get(digest)
        if caller is None:
            caller = self._of_sources(key, digest)
        if right not in caller.may and right != "key":
            raise errors.PermissionDeniedError(
                f'key "{caller.key}" may not {right}: {self._how(caller, right)}',
                reason="RIGHT_MISSING",
            )
        if right == "admin" and caller.role != "platform_admin":
            raise errors.PermissionDeniedError(
                f'this concerns all tenants, and key "{caller.key}" is a {caller.role}\'s: ask a '
                "platform admin",
                reason="ROLE_MISSING",
            )
        return caller

    def _of_sources(self, key: str, digest: bytes) -> Caller:
        for source in self._sources:
            if (caller := source.find(key, digest)) is not None:
                return caller
        listed = (
            "by `aiflow key list`, or under `auth.keys` in the router's aiflow.yaml"
            if self._sources
            else "under `auth.keys` in the router's aiflow.yaml"
        )
        raise errors.AuthenticationError(
            "this API key is not known to the router: check it for typing errors and that it is "
            f"listed {listed}"
        )

    def _how(self, caller: Caller, right: str) -> str:
        if caller.member:
            return f"use one with this right, made by `aiflow key create --may {right}`"
        return f'add "{right}" to its `may` in the router\'s aiflow.yaml'
