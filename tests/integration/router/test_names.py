"""Endpoints that are known by name: the name is looked up again when the connection is lost."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from integration.router.health_server import model_server
from integration.router.kit import until

from aiflow_router.forwarding.link import Link


class Names:
    """A DNS server that answers every question with `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def serve(self) -> None:
        while True:
            question, who = self._socket.recvfrom(512)
            if not question:
                return
            end = question.index(b"\0", 12) + 5
            (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
            answers = 1 if kind == 1 else 0  # A; there is no AAAA.
            head = question[:2] + struct.pack("!5H", 0x8180, 1, answers, 0, 0)
            record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4)
            record += socket.inet_aton(self.address)
            self.asked += answers
            self._socket.sendto(head + question[12:end] + record * answers, who)

    def close(self) -> None:
        self._socket.close()

    def stop(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())


@contextmanager
def names(address: str) -> Iterator[Names]:
    found = Names(address)
    thread = Thread(target=found.serve)
    thread.start()
    try:
        yield found
    finally:
        found.stop()
        thread.join()
        found.close()


async def test_a_name_that_moved_is_followed_when_the_connection_is_lost() -> None:
    with names("127.0.0.1") as dns:
        async with model_server() as old:
            port = old.address.rpartition(":")[2]
            link = Link(f"dns://127.0.0.1:{dns.port}/model.test:{port}", max_message_bytes=1 << 20)
            assert await link.connect(timeout_s=5)
            asked = dns.asked
            dns.address = "127.0.0.2"
        await until(lambda: not link.ready())
        async with model_server(host="127.0.0.2", port=int(port)):
            async with asyncio.timeout(10):
                while not await link.connect(timeout_s=1):  # noqa: ASYNC110 - polls what has no event
                    await asyncio.sleep(0.1)
            assert dns.asked > asked
        await link.close()
