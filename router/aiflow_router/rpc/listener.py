"""Leaving an address that other processes listen on too, without losing a connection.

With SO_REUSEPORT each listening socket has a queue of its own, and what is in it when the socket
closes is reset by Linux. So new connections are first steered to the others; then handshakes that
have begun end, and the queue empties; then the socket closes. gRPC cannot close a listening socket
and go on serving, so this is done under its feet, with what Linux offers: the socket is found among
this process's descriptors, and replaced by one that never listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from aiflow_router.rpc import steering

# A handshake takes a round trip; callers are near, or behind something that is.
HANDSHAKES_WITHIN_S = 0.2
# The queue of a process that has something to do empties within milliseconds.
QUEUE_EMPTY_WITHIN_S = 5.0
POLL_S = 0.05

_TCP_INFO = 11
# struct tcp_info: tcpi_unacked, of a listening socket the length of its queue.
_QUEUE_AT = 24


def connections(port: int) -> int:
    """Connections that came to `port` and are open in this process."""
    return sum(1 for _, listening in _sockets(port) if not listening)


def end_steering(port: int) -> None:
    """Gives every member of the group its share again, once the one that left has closed.

    Not before: then some would go to it after all.
    """
    for fd, listening in _sockets(port):
        if listening:
            with _same(fd) as member:
                steering.let_go(member)


async def stop_listening(port: int, *, index: int = 0, of: int = 0) -> None:
    """Closes what listens on `port` in this process; connections it has taken stay.

    It is at `index` of `of` in its group, one of which has to `end_steering` afterwards. Where
    that is wrong, or this is the last, handshakes meanwhile are dropped, if Linux allows it, and
    repeated by their callers' kernels a second later.
    """
    loop = asyncio.get_running_loop()
    own = [fd for fd, listening in _sockets(port) if listening]
    for fd in own:
        with _same(fd) as member:
            if of > 1:
                steering.steer(member, steering.others_than(index, of))
            steering.drop_handshakes(member)
    await asyncio.sleep(HANDSHAKES_WITHIN_S)
    end_s = loop.time() + QUEUE_EMPTY_WITHIN_S
    while any(map(_queued, own)) and loop.time() < end_s:  # noqa: ASYNC110 - as gRPC takes them
        await asyncio.sleep(POLL_S)
    for fd in own:
        with socket.socket() as never_listens:
            # The descriptor stays valid for gRPC, which closes it at its end.
            os.dup2(never_listens.fileno(), fd, inheritable=False)


def _sockets(port: int) -> Iterator[tuple[int, bool]]:
    """Descriptors of this process's sockets at `port`, and whether each listens."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError), _same(int(name)) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
                yield int(name), bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _same(fd: int) -> socket.socket:
    """The socket behind a descriptor; raises OSError where it is none."""
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _queued(fd: int) -> int:
    """Connections that Linux has completed and nobody has taken yet."""
    with _same(fd) as listening:
        told = listening.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _QUEUE_AT + 4)
    (queued,) = struct.unpack_from("=I", told, _QUEUE_AT)
    return int(queued)
