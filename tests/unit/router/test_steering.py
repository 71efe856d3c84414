"""Linux does what the order of a group and the programs for it assume."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

from aiflow_router.processes.address import reserved
from aiflow_router.rpc.steering import Group, let_go, others_than, steer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's programs")

CONNECTIONS = 60


def member(address: tuple[str, int]) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(address)
    listening.listen(CONNECTIONS)
    listening.setblocking(False)
    return listening


def listens_alone(address: tuple[str, int]) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(address)
        other.listen()


def taken(listening: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


@contextlib.contextmanager
def callers(address: tuple[str, int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(address))
        yield


def test_the_group_has_the_order_that_linux_has_whoever_leaves() -> None:
    group = Group()
    with reserved("127.0.0.1:0") as held, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(held.rpartition(":")[2]))
        members: dict[str, socket.socket] = {}

        def join(name: str) -> None:
            members[name] = stack.enter_context(member(address))
            group.joined(name)

        def leave(name: str) -> None:
            members.pop(name).close()
            group.left(name)

        for name in "abcd":
            join(name)
        leave("b")
        join("e")
        leave("a")
        group.left("a")  # Told twice.
        for avoided in list(members):
            index, of = group.place(avoided)
            steer(members[avoided], others_than(index, of))
            with callers(address):
                counts = {name: taken(listening) for name, listening in members.items()}
            assert counts.pop(avoided) == 0
            assert sum(counts.values()) == CONNECTIONS
            assert all(counts.values()), counts
        let_go(members["c"])
        let_go(members["c"])  # Nothing is steered any more.
        with callers(address):
            assert all(taken(listening) for listening in members.values())


def test_a_place_that_is_not_known_is_none() -> None:
    assert Group().place("a") == (0, 0)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0"])
def test_a_reserved_address_is_taken_for_everybody_who_does_not_share_it(address: str) -> None:
    with reserved(address) as held:
        with pytest.raises(OSError, match="in use"), reserved(held):
            pass
        alone = ("127.0.0.1", int(held.rpartition(":")[2]))
        with pytest.raises(OSError, match="in use"):
            listens_alone(alone)
    with reserved(held):  # It is free again.
        pass
