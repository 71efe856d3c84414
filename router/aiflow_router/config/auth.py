"""Who may call: keys that are listed here, and whose tokens are trusted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from aiflow_router.config.values import Name, Section, first_twice
from aiflow_router.identity.caller import Right
from aiflow_router.identity.jwks import JwksFile
from aiflow_router.identity.keys import KeyRecord
from aiflow_router.identity.tokens import Trust


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(
            "must be the SHA-256 of the key as 64 lower-case hex digits: "
            "`printf %s KEY | sha256sum` prints it"
        )
    return value


class Key(Section):
    name: Name
    tenant: Name
    sha256: Annotated[str, AfterValidator(_sha256)] = Field(repr=False)
    may: Annotated[tuple[Right, ...], Field(min_length=1)] = ("call",)

    def record(self) -> KeyRecord:
        return KeyRecord(
            name=self.name, tenant=self.tenant, sha256=self.sha256, may=frozenset(self.may)
        )


class Jwt(Section):
    """Tokens of one issuer."""

    issuer: Name
    audience: Name
    # Its public keys; read again when the file changes.
    jwks_file: Name
    tenant_claim: Name = "tenant"
    member_claim: Name = "sub"

    @field_validator("jwks_file")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            JwksFile(path=Path(value)).read()
        except OSError as error:
            raise ValueError(f"{value} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{value} {error}") from None
        return value

    def trust(self) -> Trust:
        return Trust(
            issuer=self.issuer,
            audience=self.audience,
            tenant_claim=self.tenant_claim,
            member_claim=self.member_claim,
        )


class Auth(Section):
    mode: Literal["required", "optional"] = "optional"
    keys: tuple[Key, ...] = ()
    # Beside these, tokens of members.
    jwt: Jwt | None = None
    # Where the first start with a database leaves the admin's key; beside it by default.
    admin_key_file: Name | None = None

    @model_validator(mode="after")
    def _usable(self) -> Auth:
        if twice := first_twice([key.name for key in self.keys]):
            raise ValueError(f'two keys are named "{twice}"')
        if first_twice([key.sha256 for key in self.keys]):
            raise ValueError("two entries of keys are the same key")
        return self
