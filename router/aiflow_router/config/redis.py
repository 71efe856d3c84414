"""The Redis that has the buckets, so that several routers and workers share them."""

from __future__ import annotations

import re
import ssl
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from aiflow_router.config.values import Section, Timeout, at
from aiflow_router.limits.redis.link import Settings

_FORMS = '"redis://HOST:PORT", "rediss://USER:PASSWORD@HOST:PORT/DATABASE" or "unix:///PATH"'
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")


class RedisTls(Section):
    # PEM files: whom to believe, and who this router is where Redis asks.
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _usable(self) -> RedisTls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("`cert` and `key` belong together: give both or none")
        self.context()
        return self

    def context(self) -> ssl.SSLContext:
        """Raises ValidationError where the files are of no use."""
        context = ssl.create_default_context()
        for name, path in (("ca", self.ca), ("cert", self.cert)):
            try:
                if path is not None and name == "ca":
                    context.load_verify_locations(path)
                elif path is not None:
                    context.load_cert_chain(path, self.key)
            except OSError as error:  # ssl.SSLError is one.
                raise at(name, why=f"{path} cannot be used: {error}") from None
        return context


class Redis(Section):
    url: str = Field(repr=False)
    # Without an answer in that time Redis is away, until it answers again.
    timeout: Timeout = 0.02
    # Of all its keys. Routers with the same prefix share their limits.
    prefix: str = "aiflow"
    tls: RedisTls | None = None

    @field_validator("prefix")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _PREFIX.fullmatch(value):
            raise ValueError("must be 1 to 64 letters, digits, and - _ . : such as aiflow")
        return value

    @model_validator(mode="after")
    def _usable(self) -> Redis:
        if problem := _problem(self.url):
            raise at("url", why=problem)
        if not 0.001 <= self.timeout <= 10:
            raise at(
                "timeout", why="must be 1ms to 10s: a call waits so long for a Redis that died"
            )
        if self.tls is not None and not self.url.startswith("rediss:"):
            raise at("tls", why="has no effect with this url: write rediss:// there, or remove it")
        return self

    def shown(self) -> str:
        """The address without a secret."""
        return re.sub(r"://[^/]*@", "://***@", self.url)

    def settings(self) -> Settings:
        parts = urlsplit(self.url)
        over_unix = parts.scheme == "unix"
        tls = None
        if parts.scheme == "rediss":
            tls = (self.tls or RedisTls()).context()
        return Settings(
            host=parts.hostname or "",
            port=parts.port or 6379,
            path=unquote(parts.path) if over_unix else "",
            database=0 if over_unix else int(parts.path.strip("/") or 0),
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            timeout_s=self.timeout,
            tls=tls,
        )


def _problem(url: str) -> str:
    """Why it cannot be used; empty where it can. Says nothing that is in it, for it has secrets."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"is no address: write {_FORMS}"
    unix = parts.scheme == "unix" and parts.path and not parts.netloc.rpartition("@")[2]
    tcp = parts.scheme in ("redis", "rediss") and parts.hostname and port != 0
    if not unix and not tcp:
        return f"must be {_FORMS}"
    if parts.query or parts.fragment:
        return "may have nothing after `?` or `#`: the other settings are keys beside `url`"
    if tcp and not re.fullmatch(r"/?\d{0,4}", parts.path):
        return "names a database that is no number: end with /0 or leave it out"
    if parts.username and not parts.password:
        return "has a user without a password: write redis://USER:PASSWORD@HOST, or :PASSWORD@"
    return ""
