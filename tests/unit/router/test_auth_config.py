"""`auth` and `storage` of aiflow.yaml; secrets are not printed."""

import pytest
from unit.router.config_kit import DIGEST, refusal

from aiflow_router.config.config import Config
from aiflow_router.config.file import parse, plain, printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("auth: {mode: requird}", "did you mean `required`?", id="a misspelt value"),
        pytest.param("auth: {mode: required}", "nobody could call", id="required without keys"),
        pytest.param(
            "auth: {keys: [{name: a, tenant: t, sha256: abc}]}", "64 lower-case", id="a bad hash"
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        pytest.param(
            "auth: {mode: required}", "auth: mode is `required` but there are no keys", id="no keys"
        ),
        pytest.param(
            "auth: {admin_key_file: a.key}",
            "auth.admin_key_file: has no effect without `storage`",
            id="a file for the first key without a database",
        ),
        pytest.param(
            "auth: {jwt: {issuer: i, audience: a, jwks_file: gone.json}}",
            "auth.jwt.jwks_file: gone.json cannot be read",
            id="keys for tokens that are not there",
        ),
        pytest.param(
            "storage: {url: 'mysql://a/b'}",
            "storage.url: must be sqlite:///",
            id="another database",
        ),
        pytest.param("storage: {url: 'sqlite://'}", "needs a file", id="a database in memory"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: str, problem: str) -> None:
    assert problem in refusal(config)


def test_secrets_are_not_printed_and_the_rest_can_be_read_again() -> None:
    config = parse(f"auth: {{mode: required, keys: [{{name: n, tenant: t, sha256: {DIGEST}}}]}}")
    assert DIGEST not in printed(config) + str(plain(config)) + repr(config)
    assert parse(printed(Config())) == Config()


def test_a_password_is_not_printed() -> None:
    config = parse("storage: {url: 'postgresql://me:hush@db/aiflow'}")
    assert "hush" not in printed(config)
    assert "db/aiflow" in printed(config)
    assert "hush" not in repr(config)
