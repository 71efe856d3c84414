"""What a client is told once: where the router is, who calls, how long, how often."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from aiflow_sdk.errors import BadInputError

DEFAULT_ROUTER = "127.0.0.1:7600"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently a call that is safe to repeat is repeated.

    The wait before each repetition is what the server asked for, or else drawn evenly from zero to
    a bound that starts at `min_wait_s` and doubles up to `max_wait_s`.
    """

    attempts: int = 3
    """Attempts in all, the first included; 1 repeats nothing."""
    min_wait_s: float = 0.025
    max_wait_s: float = 0.25

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise BadInputError(f"Retry(attempts={self.attempts}): at least 1 is needed")
        if not 0 <= self.min_wait_s <= self.max_wait_s < math.inf:
            raise BadInputError("Retry: 0 <= min_wait_s <= max_wait_s is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Encryption on the way to the router; files are PEM."""

    ca_file: str | Path | None = None
    """Certificates to trust; None trusts those gRPC comes with."""
    cert_file: str | Path | None = None
    """This client's certificate, where the router asks for one; with `key_file`."""
    key_file: str | Path | None = None
    server_name: str | None = None
    """Name to expect in the router's certificate where it is not the host in the address."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise BadInputError("TLS: cert_file and key_file belong together; give both or none")

    @classmethod
    def from_environment(cls) -> TLS | None:
        """By AIFLOW_TLS_CA, AIFLOW_TLS_CERT and AIFLOW_TLS_KEY; None where none of them is set."""
        ca, cert, key = (os.environ.get(f"AIFLOW_TLS_{n}") or None for n in ("CA", "CERT", "KEY"))
        return cls(ca_file=ca, cert_file=cert, key_file=key) if ca or cert or key else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; raises BadInputError naming the one that cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read("ca_file", self.ca_file),
            private_key=_read("key_file", self.key_file),
            certificate_chain=_read("cert_file", self.cert_file),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A client's options with the environment applied."""

    router: str
    api_key: str | None = field(repr=False)
    timeout_s: float
    tls: TLS | None
    retry: Retry

    @classmethod
    def resolve(
        cls,
        *,
        router: str | None,
        api_key: str | None,
        timeout_s: float,
        tls: TLS | None,
        retry: Retry | None,
    ) -> Settings:
        key = api_key if api_key is not None else os.environ.get("AIFLOW_API_KEY")
        if key and not (key.isascii() and key.isprintable()):
            raise BadInputError("the API key holds characters that cannot be sent; copy it again")
        return cls(
            router=checked_address(router or os.environ.get("AIFLOW_ROUTER") or DEFAULT_ROUTER),
            api_key=key or None,
            timeout_s=checked_timeout(timeout_s),
            tls=tls or TLS.from_environment(),
            retry=retry or Retry(),
        )

    def channel_options(self) -> list[tuple[str, int | str]]:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # A dead peer is noticed within 40 s. Servers answer pings more often than once in
            # 5 minutes with GOAWAY unless a call is in flight, so none are sent on an idle channel.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.http2.ping_timeout_ms", 10_000),  # keepalive_timeout_ms has no effect in 1.78
            ("grpc.keepalive_permit_without_calls", 0),
            # A router that restarts is found again within about a second, not gRPC's two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # Two clients of one process share no connection, so closing one never stalls the other.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise BadInputError(f"timeout_s={timeout_s}: a number of seconds above zero is needed")
    return timeout_s


def checked_address(router: str) -> str:
    host, colon, port = router.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536) or "//" in router:
        raise BadInputError(f"router {router!r} is not an address such as 127.0.0.1:7600")
    return router


def _read(name: str, file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadInputError(f"TLS {name} {str(file)!r} cannot be read: {error.strerror}") from error
