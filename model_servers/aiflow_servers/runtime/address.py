"""Addresses as "host:port": reading them, and finding the one that others can connect to."""

from __future__ import annotations

import ipaddress
import re
import socket

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>\d{1,5})")


class AddressError(ValueError):
    """An address that cannot be used; the text says what to write instead."""


def split(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port"."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise AddressError(
            f"{text!r} is not an address: write HOST:PORT, such as 127.0.0.1:7600 or [::1]:7600"
        )
    return found["v6"] or found["host"], int(found["port"])


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def advertised(*, host: str, port: int, caller: str | None) -> str:
    """The address at which `caller` can reach a server that listens at `host` and `port`.

    A server that listens on every interface is reached at the one that faces the caller, a
    "host:port"; None where it is not known.

    Raises:
        AddressError: there is no way to tell; the operator must say it.
    """
    if not _unspecified(host):
        return join(host, port)
    if caller is None:
        raise AddressError(
            f"listening on every interface ({join(host, port)}), and which of them the routers that"
            f" ask Consul can reach is not known: say --advertise HOST:{port}"
        )
    try:
        return join(_local_address_towards(*split(caller)), port)
    except OSError as error:
        raise AddressError(
            f"listening on every interface ({join(host, port)}), and which of them the router"
            f" {caller} can reach is not known ({error}): say --advertise HOST:{port}"
        ) from error


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _local_address_towards(host: str, port: int) -> str:
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # sends nothing: a datagram socket only chooses its route
        local: str = probe.getsockname()[0]
        return local
