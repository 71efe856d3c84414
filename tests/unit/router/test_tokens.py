"""Tokens: signed by the issuer, for a member who is known now."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from aiflow_router.identity.caller import Caller
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.jwks import JwksFile, parse
from aiflow_router.identity.key import digest
from aiflow_router.identity.tokens import Tokens, Trust
from aiflow_sdk import errors

NOW_S = 1_800_000_000.0
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
TRUST = Trust(issuer="https://id", audience="aiflow", tenant_claim="org", member_claim="sub")
CLAIMS: dict[str, Any] = {
    "iss": "https://id",
    "aud": "aiflow",
    "org": "acme",
    "sub": "ann",
    "exp": 4_000_000_000,
}
ANN = Caller(name="token of ann", tenant="acme", may=frozenset({"call"}), member="ann")


def public(key: Any, kid: str, algorithm: Any) -> dict[str, Any]:
    told: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**told, "kid": kid}


RSA_JWK = public(RSA, "rsa", jwt.algorithms.RSAAlgorithm)
PSS_JWK = {**RSA_JWK, "kid": "pss", "alg": "PS256"}
EC_JWK = public(EC, "ec", jwt.algorithms.ECAlgorithm)
ED_JWK = public(ED, "ed", jwt.algorithms.OKPAlgorithm)


@dataclass
class Issuer:
    """A set of keys in a file, and a router that trusts it."""

    file: Path
    wall_s: list[float] = field(default_factory=lambda: [NOW_S])

    def __post_init__(self) -> None:
        self.publish(RSA_JWK, PSS_JWK, EC_JWK, ED_JWK)
        self.jwks = JwksFile(path=self.file)
        self.jwks.read()
        self.directory = Directory(names_members=True)
        self.directory.change_members({("acme", "ann"): ANN})
        self.tokens = Tokens(
            TRUST, jwks=self.jwks, directory=self.directory, wall=lambda: self.wall_s[0]
        )

    def publish(self, *keys: dict[str, Any]) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"keys": keys}))
        new.replace(self.file)

    def find(self, token: str) -> Caller | None:
        return self.tokens.find(token, digest(token))

    def refused(self, token: str) -> str:
        with pytest.raises(errors.AuthenticationError) as caught:
            self.find(token)
        assert caught.value.reason == "KEY_INVALID"
        assert token not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **claims: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    told = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(told, key, algorithm=algorithm, headers=headers)


def forged(header: dict[str, Any], claims: dict[str, Any] | None = None) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(CLAIMS if claims is None else claims)}."


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param(token(), id="RSA"),
        pytest.param(token(algorithm="PS256", kid="pss"), id="RSA with PSS, as its key says"),
        pytest.param(token(EC, "ES256", "ec"), id="an elliptic curve"),
        pytest.param(token(ED, "EdDSA", "ed"), id="Ed25519"),
    ],
)
def test_a_token_of_the_issuer_is_its_member(issuer: Issuer, signed: str) -> None:
    assert issuer.find(signed) is ANN
    assert issuer.find(signed) is ANN


REFUSED = [
    pytest.param(token(OTHER), "", id="signed by another key under its name"),
    pytest.param(token(kid="gone"), "no key of the issuer", id="by a key that is not known"),
    pytest.param(token(kid=None), "no key of the issuer", id="that does not say by which of many"),
    pytest.param(token(algorithm="RS512"), "does not match", id="in a way the key is not for"),
    pytest.param(token(iss="https://else"), "issuer", id="of another issuer"),
    pytest.param(token(iss=None), "iss", id="of none"),
    pytest.param(token(aud="else"), "udience", id="for somebody else"),
    pytest.param(token(aud=None), "aud", id="for nobody"),
    pytest.param(token(exp=1), "expired", id="expired"),
    pytest.param(token(exp=None), "exp", id="that never ends"),
    pytest.param(token(nbf=4_000_000_000), "not yet valid", id="of tomorrow"),
    pytest.param(token(sub="eve"), 'member "eve" of tenant "acme"', id="for nobody who is known"),
    pytest.param(token(org="other"), 'tenant "other"', id="for a tenant that is not known"),
    pytest.param(token(org=None), "`org` is not a name", id="for no tenant"),
    pytest.param(token(org=["acme"]), "`org` is not a name", id="for several"),
    pytest.param(forged({"alg": "none"}), "", id="signed by nobody"),
    pytest.param(forged({"alg": "none", "kid": "rsa"}), "", id="by nobody in a key's name"),
    pytest.param(forged({"alg": "RS256", "kid": ["rsa"]}), "", id="with a list for a name"),
    pytest.param(forged({"alg": "RS256", "kid": {}}), "", id="with an object for a name"),
    pytest.param("a.b.c", "", id="of no letters that mean anything"),
    pytest.param("..", "", id="of nothing"),
]


@pytest.mark.parametrize(("signed", "why"), REFUSED)
def test_another_token_is_refused_with_why(issuer: Issuer, signed: str, why: str) -> None:
    assert why in issuer.refused(signed)


def test_a_public_key_does_not_sign_as_a_password(issuer: Issuer) -> None:
    """The known attack: HS256, with the public key for the secret."""
    header = forged({"alg": "HS256", "kid": "rsa"})
    assert issuer.refused(header[:-1] + "." + "A" * 43)


def test_what_is_no_token_is_left_to_others(issuer: Issuer) -> None:
    assert issuer.find("aif_00000000_secret") is None


def test_a_token_that_was_good_ends_with_its_time(issuer: Issuer) -> None:
    signed = token()
    assert issuer.find(signed) is ANN
    issuer.wall_s[0] = 4_000_000_100.0
    assert "expired" in issuer.refused(signed)


def test_a_member_that_is_disabled_is_refused_with_a_token_that_was_good(issuer: Issuer) -> None:
    signed = token()
    assert issuer.find(signed) is ANN
    issuer.directory.change_members(
        {("acme", "ann"): replace(ANN, barred="its member is disabled")}
    )
    assert "its member is disabled" in issuer.refused(signed)


async def _turns(issuer: Issuer, turns: int = 1) -> None:
    """Lets the file be looked at so many times."""

    class EnoughError(Exception):
        pass

    left = [turns]

    async def sleep(_: float) -> None:
        if not left[0]:
            raise EnoughError
        left[0] -= 1

    with pytest.raises(EnoughError):
        await issuer.jwks.run(sleep)


async def test_a_key_that_is_withdrawn_takes_its_tokens_with_it(issuer: Issuer) -> None:
    signed, later = token(), token(EC, "ES256", "ec")
    assert issuer.find(signed) is ANN
    issuer.publish(EC_JWK, ED_JWK)
    await _turns(issuer)
    assert "no key of the issuer" in issuer.refused(signed)
    assert issuer.find(later) is ANN


async def test_a_file_that_is_not_in_order_leaves_the_keys_as_they_were(issuer: Issuer) -> None:
    issuer.file.write_text("{")
    await _turns(issuer)
    assert "is no JSON" in issuer.jwks.problem
    assert issuer.find(token()) is ANN
    issuer.file.unlink()
    await _turns(issuer)
    assert "No such file" in issuer.jwks.problem
    issuer.publish(RSA_JWK)
    os.utime(issuer.file, (1, 1))
    await _turns(issuer)
    assert issuer.jwks.problem == ""
    assert issuer.find(token(kid=None)) is ANN


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("[]", "has no keys", id="a list"),
        pytest.param('{"keys": []}', "has no keys", id="an empty set"),
        pytest.param('{"keys": [1]}', "key 1 is of kind None", id="a number"),
        pytest.param('{"keys": [{"kty": "oct", "k": "AA"}]}', "kind 'oct'", id="a shared secret"),
        pytest.param('{"keys": [{"kty": "RSA"}]}', "key 1 cannot be used", id="half a key"),
        pytest.param(json.dumps({"keys": [{**RSA_JWK, "d": "AA"}]}), "private", id="a private key"),
        pytest.param(json.dumps({"keys": [{**RSA_JWK, "use": "enc"}]}), "for signatures", id="enc"),
        pytest.param(json.dumps({"keys": [RSA_JWK, RSA_JWK]}), "another one", id="one `kid` twice"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)
