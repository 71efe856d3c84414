"""`redis:` in aiflow.yaml: what cannot work is refused, and the password is never printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.router.config_kit import refusal

from aiflow_router.config.file import ConfigError, parse, printed
from aiflow_router.limits.redis.link import Settings


def settings(redis: str) -> Settings:
    found = parse(f"redis: {redis}").redis
    assert found is not None
    return found.settings()


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        pytest.param("{url: 'redis://h'}", Settings(host="h"), id="a host"),
        pytest.param(
            "{url: 'redis://u:p%40s@[::1]:7/3', timeout: 5ms}",
            Settings(host="::1", port=7, database=3, username="u", password="p@s", timeout_s=0.005),
            id="all that an address may have",
        ),
        pytest.param(
            "{url: 'redis://:secret@h'}", Settings(host="h", password="secret"), id="no user"
        ),
        pytest.param(
            "{url: 'unix:///run/redis%20s'}", Settings(host="", path="/run/redis s"), id="a socket"
        ),
    ],
)
def test_what_an_address_says(redis: str, expected: Settings) -> None:
    assert settings(redis) == expected


def test_rediss_is_with_tls() -> None:
    assert settings("{url: 'rediss://h'}").tls is not None


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        pytest.param("{}", "redis.url: Field required", id="no address"),
        pytest.param("{url: 'http://h'}", '1:9: redis.url: must be "redis://', id="no redis://"),
        pytest.param("{url: 'redis://'}", "redis.url: must be", id="no host"),
        pytest.param("{url: 'redis://h:x'}", "redis.url: is no address", id="no port"),
        pytest.param("{url: 'redis://h/a'}", "database that is no number", id="no database"),
        pytest.param("{url: 'redis://u@h'}", "user without a password", id="no password"),
        pytest.param("{url: 'redis://h?db=1'}", "are keys beside `url`", id="a query"),
        pytest.param("{url: 'redis://h', tls: {}}", "write rediss:// there", id="tls without it"),
        pytest.param(
            "{url: 'rediss://h', tls: {ca: /no/such}}", "redis.tls.ca: /no/such", id="no such file"
        ),
        pytest.param(
            "{url: 'rediss://h', tls: {cert: a}}", "belong together", id="half a pair of files"
        ),
        pytest.param("{url: 'redis://h', timeout: 0s}", "longer than 0", id="no time"),
        pytest.param("{url: 'redis://h', timeout: 1m}", "must be 1ms to 10s", id="too much time"),
        pytest.param(
            "{url: 'redis://h', prefix: '{}'}", "redis.prefix: must be", id="a bad prefix"
        ),
        pytest.param("{url: 'redis://h', prefx: a}", "did you mean `prefix`", id="a typing error"),
    ],
)
def test_what_is_refused(redis: str, expected: str) -> None:
    assert expected in refusal(f"redis: {redis}")


@pytest.mark.parametrize("url", ["redis://u:s3cret@h", "redis://:s3cret@h", "redis://u:s3@cret@h"])
def test_the_password_is_not_printed(url: str) -> None:
    config = parse(f"redis: {{url: '{url}'}}")
    for text in (printed(config), repr(config), repr(config.redis and config.redis.settings())):
        assert "cret" not in text
    assert "redis://***@h" in printed(config)


def test_the_password_is_not_in_an_error() -> None:
    with pytest.raises(ConfigError) as refused:
        parse("redis: {url: 'redis://u:s3cret@h/none'}")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("limit", "refused"),
    [
        pytest.param("{name: a, rate: 9/s, lease: 1s}", "", id="a rate may be leased"),
        pytest.param("{name: a, rate: 9/s, strict: true, lease: 1s}", "lease: is for", id="strict"),
        pytest.param("{name: a, quota: 9/day, lease: 1s}", "lease: is for a `rate`", id="quota"),
        pytest.param("{name: a, rate: 9/s, lease: 2m}", "must be 60s or less", id="too long"),
    ],
)
def test_what_may_be_leased(limit: str, refused: str) -> None:
    text = f"redis: {{url: 'redis://h'}}\nlimits: [{limit}]"
    if not refused:
        parse(text)
        return
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert refused in str(error.value)


def test_files_of_tls_are_read_when_the_configuration_is(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError) as refused:
        parse(f"redis: {{url: 'rediss://h', tls: {{ca: '{tmp_path}/ca.pem'}}}}")
    assert "redis.tls.ca" in str(refused.value)
