"""JSON web tokens: signed by an issuer that is trusted, for a member whom the directory knows.

A token only says who calls. What they may do is what their member may, at the moment of the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from aiflow_router.identity.caller import Caller
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.jwks import ALGORITHMS, JwksFile
from aiflow_sdk import errors

# Verified tokens that are remembered; one takes some 200 bytes.
REMEMBERED = 20_000
# Clocks differ.
LEEWAY_S = 10.0
_PARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose tokens are good here, and which of their claims name tenant and member."""

    issuer: str
    audience: str
    tenant_claim: str
    member_claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    tenant: str
    member: str
    ends_s: float


class Tokens:
    def __init__(
        self,
        trust: Trust,
        *,
        jwks: JwksFile,
        directory: Directory,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._trust = trust
        self._jwks = jwks
        self._directory = directory
        self._wall = wall
        # By the token's SHA-256; the oldest first.
        self._verified: dict[bytes, _Verified] = {}
        # A key that is withdrawn takes its tokens with it.
        jwks.follow(self._verified.clear)

    def find(self, key: str, digest: bytes) -> Caller | None:
        """Whose token it is, None for what is none. Raises AuthenticationError."""
        known = self._verified.get(digest)
        if known is None:
            if key.count(".") != _PARTS - 1:
                return None
            known = self._verify(key)
            self._remember(digest, known)
        elif known.ends_s + LEEWAY_S <= self._wall():
            del self._verified[digest]
            raise _refused("it has expired")
        caller = self._directory.member(known.tenant, known.member)
        if caller is None:
            raise _refused(
                f'it is for member "{known.member}" of tenant "{known.tenant}", who does not exist '
                "here: an admin of the tenant makes members with `aiflow member create`"
            )
        if caller.barred:
            raise _refused(caller.barred)
        return caller

    def _verify(self, token: str) -> _Verified:
        """Raises AuthenticationError."""
        trust = self._trust
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._jwks.keys.of(kid)
            if key is None:
                raise _refused("no key of the issuer that is known here has signed it")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=trust.audience,
                issuer=trust.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise _refused(str(error) or type(error).__name__) from None
        return _Verified(
            tenant=_claim(claims, trust.tenant_claim),
            member=_claim(claims, trust.member_claim),
            ends_s=float(claims["exp"]),
        )

    def _remember(self, digest: bytes, known: _Verified) -> None:
        if len(self._verified) >= REMEMBERED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = known


def _claim(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _refused(f"its claim `{name}` is not a name")
    return value


def _refused(why: str) -> errors.AuthenticationError:
    return errors.AuthenticationError(f"this token is not good: {why}")
