"""Taking an address for several processes, and for one router alone.

SO_REUSEPORT lets any process of the same user listen there too, so a second router would silently
take a share of the calls. The address is therefore tried exclusively first. From then on a socket
that never listens holds it: it gets no connections, and whoever tries the address exclusively
fails because of it, also before the first worker listens and after the last one died.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved(address: str) -> Iterator[str]:
    """The address with its real port, held until the block ends. Raises OSError."""
    host, _, port_text = address.rpartition(":")
    port = int(port_text)
    found = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with contextlib.ExitStack() as stack:
        for family, *_, where in found:
            if port:
                _tried(family, (where[0], port, *where[2:]))
            held = stack.enter_context(socket.socket(family))
            # Connections of an earlier router linger for a minute and do not matter.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _only_its_family(held)
            held.bind((where[0], port, *where[2:]))
            # From here on the address counts as taken for those who do not share it.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            port = held.getsockname()[1]
        yield f"{host}:{port}"


def _tried(family: int, where: tuple[object, ...]) -> None:
    """Raises OSError where somebody else has the address."""
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _only_its_family(alone)
        alone.bind(where)
        alone.listen(1)


def _only_its_family(of: socket.socket) -> None:
    if of.family == socket.AF_INET6:
        of.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
