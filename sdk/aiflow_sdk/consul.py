"""Consul's HTTP API, as much of it as the mesh needs: questions that may wait, and writes.

    ConsulError                 any of them
    ├── ConsulAwayError         no answer: nothing listens there, or it took too long
    ├── ConsulForbiddenError    the token may not do this, or cannot be read
    ├── ConsulMissingError      no such key or path
    ├── ConsulFailedError       Consul itself fails: 5xx, overloaded, or it has no leader
    └── ConsulRefusedError      the request or its answer makes no sense; perhaps it is not Consul
                                that listens there

Needs aiohttp and orjson, which the extras `router` and `servers` bring.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit

try:
    import aiohttp
    import orjson
    from aiohttp.connector import NEEDS_CLEANUP_CLOSED
    from yarl import URL
except ImportError as error:  # pragma: no cover - the plain SDK never comes here
    raise ImportError(
        "aiflow_sdk.consul needs aiohttp and orjson: pip install 'aiflow[router]' or "
        "'aiflow[servers]'"
    ) from error

DEFAULT_ADDRESS = "http://127.0.0.1:8500"

# Consul answers a question that may wait up to a sixteenth later than it was told to.
WAIT_JITTER = 16
# What an answer may take beyond the wait that was asked for.
MARGIN_S = 5.0
CONNECT_WITHIN_S = 2.0

# Of an answer that is an error, for the message.
_SHOWN_BYTES = 200


class ConsulError(Exception):
    """Consul did not do what it was asked to; the message says what to do next.

    Attributes:
        kind: one word, for metrics.
    """

    kind: ClassVar[str] = "consul"


class ConsulAwayError(ConsulError):
    kind = "away"


class ConsulForbiddenError(ConsulError):
    kind = "forbidden"


class ConsulMissingError(ConsulError):
    kind = "missing"


class ConsulFailedError(ConsulError):
    kind = "failed"


class ConsulRefusedError(ConsulError):
    kind = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Consul said.

    Attributes:
        raw: the body as it came, to be compared with the one before.
        index: what a question that waits for the next change has to name; 0 where there is none.
        known_leader: False where a server answers that has lost sight of the cluster.
        last_contact_s: age of what a stale read tells, as the server that answered knows it.
    """

    raw: bytes
    index: int = 0
    known_leader: bool = True
    last_contact_s: float = 0.0

    @property
    def body(self) -> Any:
        """The body as plain values, None where it is empty. Raises ConsulRefusedError."""
        if not self.raw.strip():
            return None
        try:
            return orjson.loads(self.raw)
        except orjson.JSONDecodeError:
            raise ConsulRefusedError(
                f"the answer is not JSON: {_shown(self.raw)}; is this Consul's HTTP address?"
            ) from None


def address_problem(address: str) -> str:
    """What is wrong with a "http://host:port"; empty when nothing is."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f'"{address}" is no URL: {error}'
    if parts.scheme not in ("http", "https") or not host:
        return f'"{address}" must begin with http:// or https:// and name a host'
    if parts.username is not None or parts.password is not None:
        return "must hold no user or password: a token goes into a file, see token_file"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return f'"{address}" must end after the port{f" {port}" if port else ""}'
    return ""


def segment(name: str) -> str:
    """`name` as one segment of a path, whatever it is made of."""
    return quote(name, safe="")


class Consul:
    """A client of one agent or server; an async context manager.

    The token is read anew whenever its file changes, so it can be rotated. It is never logged.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token_file: str | Path | None = None,
        datacenter: str = "",
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        margin_s: float = MARGIN_S,
    ) -> None:
        """Reads the files of `ca`, `cert` and `key`, PEM. Raises ConsulRefusedError.

        Args:
            address: "http://host:port" or "https://host:port".
            token_file: holds the ACL token and nothing else.
            datacenter: to ask about; empty for the agent's own.
            ca: certificates to trust; None trusts those of the system.
            cert: this client's own, or None.
            key: of `cert`; None where it is in the same file.
            margin_s: what an answer may take beyond the wait that was asked for.
        """
        if problem := address_problem(address):
            raise ConsulRefusedError(f"Consul's address {problem}")
        self.address = address.rstrip("/")
        self._token = None if token_file is None else _Token(Path(token_file))
        self._datacenter = datacenter
        self._margin_s = margin_s
        self._tls = _context(ca, cert, key) if self.address.startswith("https:") else True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            # Whoever waits holds a connection; how many may wait is for the caller to say.
            limit=0,
            ssl=self._tls,
            # Of TLS, some versions of Python leave connections open that were cancelled.
            enable_cleanup_closed=NEEDS_CLEANUP_CLOSED,
        )
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        index: int | None = None,
        wait_s: float | None = None,
        stale: bool = True,
    ) -> Answer:
        """Asks; raises ConsulError.

        Args:
            path: such as "/v1/catalog/services", its names quoted with `segment`.
            params: of the query.
            index: of the answer before: this one comes when there is something newer.
            wait_s: or after this time at the latest; both are given or none.
            stale: whether any server may answer, also one that has not heard the newest.
        """
        query = dict(params or {})
        if stale:
            query["stale"] = ""
        waits_s = 0.0
        if index is not None and wait_s is not None:
            query["index"] = str(index)
            query["wait"] = f"{max(1, round(wait_s * 1000))}ms"
            waits_s = wait_s + wait_s / WAIT_JITTER
        return await self._ask("GET", path, query, None, within_s=waits_s + self._margin_s)

    async def put(
        self, path: str, body: Any = None, params: Mapping[str, str] | None = None
    ) -> Answer:
        """Writes `body`: bytes as they are, anything else as JSON. Raises ConsulError."""
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        return await self._ask("PUT", path, params or {}, data, within_s=self._margin_s)

    async def delete(self, path: str, params: Mapping[str, str] | None = None) -> Answer:
        """Raises ConsulError."""
        return await self._ask("DELETE", path, params or {}, None, within_s=self._margin_s)

    async def _ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        data: bytes | None,
        *,
        within_s: float,
    ) -> Answer:
        if self._session is None:
            raise RuntimeError("use it as a context manager: async with Consul(...) as consul")
        query = dict(params)
        if self._datacenter:
            query["dc"] = self._datacenter
        url = URL(self.address + path, encoded=True).extend_query(query)
        timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=CONNECT_WITHIN_S)
        headers = {} if self._token is None else {"X-Consul-Token": self._token.read()}
        where = f"{method} {self.address}{path}"
        try:
            async with self._session.request(
                # A redirect would carry the token to somewhere else.
                method,
                url,
                data=data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                raw = await answer.read()
                if answer.status != 200:
                    raise _failure(where, answer.status, raw, token=self._token is not None)
                return _answer(raw, answer.headers)
        except TimeoutError:
            raise ConsulAwayError(
                f"{where}: no answer within {within_s:.3g} s; look at the agent there, and at the "
                "network between"
            ) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise ConsulRefusedError(
                f"{where}: its certificate is not trusted: {error.certificate_error}; name the "
                "authority that signed it with `ca`"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            if (told := _of_tls(error)) is not None:
                raise ConsulRefusedError(
                    f"{where}: {told}; look at `ca`, `cert` and `key`, and whether TLS is spoken "
                    "there at all"
                ) from None
            raise ConsulAwayError(
                f"{where}: {_said(error)}; start the agent there, or correct the address"
            ) from None


class _Token:
    """Read when the file is another one than before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._value = ""

    def read(self) -> str:
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._value = self._path.read_text(encoding="ascii").strip()
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise ConsulForbiddenError(
                f"the token file {self._path} cannot be read: {why}"
            ) from None
        if not self._value or not self._value.isprintable():
            raise ConsulForbiddenError(f"the token file {self._path} must hold one token alone")
        return self._value


def _context(
    ca: str | Path | None, cert: str | Path | None, key: str | Path | None
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConsulRefusedError(
            f"the files for TLS to Consul cannot be used (ca {ca}, cert {cert}, key {key}): {error}"
        ) from None
    return context


def _answer(raw: bytes, headers: Mapping[str, str]) -> Answer:
    try:
        return Answer(
            raw=raw,
            index=int(headers.get("X-Consul-Index", "0")),
            known_leader=headers.get("X-Consul-KnownLeader", "true") != "false",
            last_contact_s=int(headers.get("X-Consul-LastContact", "0")) / 1000,
        )
    except ValueError:
        raise ConsulRefusedError(
            "the answer's X-Consul headers are no numbers; is this Consul's HTTP address?"
        ) from None


def _failure(where: str, status: int, raw: bytes, *, token: bool) -> ConsulError:
    said = f"{where}: {status} {_shown(raw)}"
    if status in (401, 403):
        todo = "give the token in token_file the rights" if token else "name a token in token_file"
        return ConsulForbiddenError(f"{said}; {todo}")
    if status == 404:
        return ConsulMissingError(said)
    if status >= 500 or status == 429:
        return ConsulFailedError(f"{said}; see the log of the Consul servers")
    return ConsulRefusedError(f"{said}; is this Consul's HTTP address?")


def _shown(raw: bytes) -> str:
    text = raw[:_SHOWN_BYTES].decode(errors="replace").strip()
    return f'"{text}"' if text else "(nothing)"


def _of_tls(error: BaseException | None) -> str | None:
    """What TLS does not like, where that is the reason."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return str(error)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None


def _said(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error  # Its own words name TLS where none is meant.
    return str(error) or type(error).__name__
