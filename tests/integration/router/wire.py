"""An HTTP/2 connection driven by hand, for what no gRPC library would send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

INFER = "/inference.GRPCInferenceService/ModelInfer"
Header = tuple[bytes | str, bytes | str]

_LARGE_WINDOW = 2**30


def framed(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may lie."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of any kind."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def head(path: str | bytes = INFER, **changes: str | bytes | None) -> list[Header]:
    """The headers of a good call; `changes` by name with "_" for "-", None leaves one out.

    `method`, `scheme` and `authority` are the pseudo-headers.
    """
    given: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "router",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changes.items():
        key = f":{name}" if f":{name}" in given else name.replace("_", "-")
        given[key] = value
    return [(name, value) for name, value in given.items() if value is not None]


@dataclass
class Answer:
    """What came back on one stream.

    Attributes:
        headers: of the first block, or of the only one.
        trailers: of the last block.
        reset: the error code of RST_STREAM; -1 where the connection ended first.
    """

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def told(self) -> str:
        """How it ended, in a word or two."""
        if self.reset is not None:
            return "closed" if self.reset < 0 else f"reset {h2.errors.ErrorCodes(self.reset).name}"
        status = self.trailers.get("grpc-status")
        if status is not None:
            return f"grpc {status}"
        return f"http {self.headers.get(':status')}"

    @property
    def message(self) -> str:
        return unquote(self.trailers.get("grpc-message", ""))


class Wire:
    """A connection; `closed` is set when the router ended it, `goaway` says with which code."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        self.answers: dict[int, Answer] = {}
        self.closed = asyncio.Event()
        self.goaway: int | None = None
        self.pongs = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self._task = asyncio.create_task(self._read())

    async def start(self) -> None:
        """The preface and settings that let the router answer as much as it likes."""
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _LARGE_WINDOW})
        self.h2.increment_flow_control_window(_LARGE_WINDOW)
        await self.flush()

    async def flush(self) -> None:
        await self.raw(self.h2.data_to_send())

    async def raw(self, data: bytes) -> None:
        """Bytes as they are; those that the router no longer takes are lost."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def begin(self, headers: Iterable[Header], *, end: bool = False) -> int:
        """Opens a stream; its id."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, list(headers), end_stream=end)
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Body bytes, as flow control allows."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                await asyncio.sleep(0.001)
                continue
            self.h2.send_data(stream, bytes(view[:room]))
            view = view[room:]
            await self.flush()
        if end:
            self.h2.end_stream(stream)
            await self.flush()

    async def call(self, headers: Iterable[Header], body: bytes = b"", *, end: bool = True) -> int:
        stream = await self.begin(headers, end=end and not body)
        if body:
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                await self.send(stream, body, end=end)
        return stream

    async def answer(self, stream: int, *, within_s: float = 10.0) -> Answer:
        async with asyncio.timeout(within_s):
            await self.answers[stream].done.wait()
        return self.answers[stream]

    async def ask(
        self, headers: Iterable[Header], body: bytes = b"", *, end: bool = True
    ) -> Answer:
        return await self.answer(await self.call(headers, body, end=end))

    def abandon(self) -> None:
        """Ends the connection with a TCP reset."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while True:
                await self.reading.wait()
                data = await self._reader.read(65536)
                if not data:
                    break
                for event in self.h2.receive_data(data):
                    self._heard(event)
                await self.flush()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        finally:
            self.closed.set()
            for answer in self.answers.values():
                if not answer.done.is_set():
                    answer.reset = -1
                    answer.done.set()

    def _heard(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        stream = getattr(event, "stream_id", None)
        answer = self.answers.get(stream) if stream else None
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = answer.trailers = _plain(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = _plain(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            answer.data += event.data or b""
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            if not answer.done.is_set():
                answer.reset = int(event.error_code or 0)
            answer.done.set()
        elif isinstance(event, h2.events.StreamEnded):
            answer.done.set()


@asynccontextmanager
async def wire(address: str, *, start: bool = True) -> AsyncIterator[Wire]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = Wire(reader, writer)
    try:
        if start:
            await connection.start()
        yield connection
    finally:
        await connection.close()


def _plain(headers: Iterable[tuple[bytes, bytes]] | None) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in headers or ()}
