"""The certificate that the router shows, read anew when its files change.

gRPC asks for it at each handshake. What cannot be used is not taken: the one before stays, and the
log says why, for a renewal that went wrong must not end what goes well.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import structlog

from aiflow_router.config.listen import TLS

_log = structlog.get_logger(__name__)

# Of each file, as it was when it was read.
_Seen = tuple[tuple[int, int, int], ...]


class CertificateError(Exception):
    """The files cannot be used; the message says which, why, and what to do."""


def server_credentials(tls: TLS) -> grpc.ServerCredentials:
    """Raises CertificateError."""
    files = _Files(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.first,
        files.changed,  # type: ignore[arg-type]  # None is gRPC's word for no change
        require_client_authentication=tls.client_ca is not None,
    )


class _Files:
    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self._seen = self._look()
        self.first = _configuration(tls)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC; None where nothing is new."""
        try:
            seen = self._look()
            if seen == self._seen:
                return None
            self._seen = seen  # Looked at once, whatever comes of it.
            found = _configuration(self._tls)
        except CertificateError as error:
            _log.error("the new certificate is not taken: the old one stays", error=str(error))
            return None
        _log.info("another certificate is shown from now on", cert=self._tls.cert)
        return found

    def _look(self) -> _Seen:
        return tuple(_stat(name, path) for name, path in _named(self._tls))


def _named(tls: TLS) -> Iterator[tuple[str, str]]:
    yield from (("cert", tls.cert), ("key", tls.key))
    if tls.client_ca is not None:
        yield "client_ca", tls.client_ca


def _stat(name: str, path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - of three files at each handshake
    except OSError as error:
        raise _unusable(name, path, error.strerror or str(error)) from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _configuration(tls: TLS) -> grpc.ServerCertificateConfiguration:
    """Checked by OpenSSL first, for gRPC says of a bad one only that it cannot listen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise _unusable("cert", tls.cert, f"with key {tls.key}: {_why(error)}") from None
    roots = None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
            roots = Path(tls.client_ca).read_bytes()
        except (OSError, ssl.SSLError) as error:
            raise _unusable("client_ca", tls.client_ca, _why(error)) from None
    pair = (Path(tls.key).read_bytes(), Path(tls.cert).read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def _no_password() -> str:
    """OpenSSL would ask for it at the terminal."""
    raise ValueError("the key is encrypted; decrypt it with `openssl pkey` first")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)


def _unusable(name: str, path: str, why: str) -> CertificateError:
    return CertificateError(f"listen.tls.{name}: {path} cannot be used: {why}; PEM is needed")
