"""The connection to one address: one channel, its call objects made once, closed when idle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeAlias

import grpc
import grpc.aio

from aiflow_router.catalog.endpoint import Endpoint, Key
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.forwarding.metadata import Pairs
from aiflow_router.forwarding.unary import Answer, ask

READY = grpc.ChannelConnectivity.READY
_FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)

# A black-holed address answers nothing at all; a live one on any network connects well within this.
CONNECT_TIMEOUT_S = 1.0
MAX_METHODS = 1024

Stream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"  # in the stubs only


# The same for all, where gRPC by default refuses some at random from 8 KiB on.
_METADATA_BYTES = 16 * 1024
# What one side may send of a stream before the other has taken any: a fixed window, enough for
# 20 MB/s at 50 ms. gRPC's own grows to several times that and finds its size by pings, which cost
# a tenth of a call where thousands of connections are each used now and then.
_WINDOW_BYTES = 1024 * 1024
# Of both sides, callers' and backends'.
TRANSPORT = (
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
)


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # Checked at the door.
        *TRANSPORT,
        # What is safe to repeat is the router's decision, never the transport's.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # The router's own proxy settings are not meant for its backends.
        ("grpc.enable_http_proxy", 0),
        # A subchannel that another channel saw fail would hand on its back-off.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that returns is connected to soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A name is looked up again when its connection is lost; after gRPC's 30 s that is too late.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Finds a peer that vanished without a word; 20 s is what servers tolerate with calls open.
        ("grpc.keepalive_time_ms", 20_000),
        # gRPC's keepalive timeout has no effect while this one is at its minute.
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
    ]


class Link:
    def __init__(self, address: str, *, max_message_bytes: int) -> None:
        self.address = address
        self.calls = 0
        self._channel = grpc.aio.insecure_channel(
            address, options=channel_options(max_message_bytes)
        )
        self._stream: dict[str, Stream] = {}
        self._connecting: asyncio.Task[bool] | None = None
        self._retired = False
        self._closed: asyncio.Task[None] | None = None

    def ready(self) -> bool:
        return self._channel.get_state() is READY

    async def connect(self, *, timeout_s: float | None) -> bool:
        """Whether there is a connection, made now if need be. Nothing of any call is sent."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        # Shared by all calls that wait for it, so one that is cancelled must not cancel it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._connecting)
        return False

    async def _connect(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                state = self._channel.get_state(try_to_connect=True)
                while state is not READY and state not in _FAILED:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
                return state is READY
        return False

    async def drops(self, *, within_s: float) -> bool:
        """Whether there is no connection now or a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.ready():
                    await self._channel.wait_for_state_change(READY)
        return not self.ready()

    def ask(
        self, method: str, request: bytes, *, timeout_s: float | None, metadata: Pairs
    ) -> Coroutine[None, None, Answer]:
        """One unary call; raises AioRpcError."""
        return ask(self._channel, method, request, timeout_s=timeout_s, metadata=metadata)

    def stream(self, method: str) -> Stream:
        call = self._stream.get(method)
        if call is None:
            # Method names come from callers: what a cache holds of them is bounded.
            if len(self._stream) >= MAX_METHODS:
                self._stream.clear()
            call = self._stream[method] = self._channel.stream_stream(method)
        return call

    def retire(self) -> None:
        """Closes the channel once no call is in flight."""
        self._retired = True
        self._close_if_idle()

    def call_ended(self) -> None:
        self.calls -= 1
        if self._retired:
            self._close_if_idle()

    async def close(self) -> None:
        self._retired, self.calls = True, 0
        self._close_if_idle()
        if self._closed is not None:
            await self._closed

    def _close_if_idle(self) -> None:
        if self.calls == 0 and self._closed is None:
            self._closed = asyncio.create_task(self._close())

    async def _close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,))
        # To find calls that it would have to end, grpc.aio's own close looks at every task there
        # is. There are none, and where hundreds of channels close at once that holds the loop.
        core: Any = self._channel._channel  # type: ignore[attr-defined]  # noqa: SLF001 - as in unary
        core.close()


class Links:
    """The links to the addresses in the catalog. A link is made with its first call."""

    def __init__(self, *, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._links: dict[str, Link] = {}
        self._known: dict[str, dict[Key, Endpoint]] = {}
        self._retired: set[Link] = set()

    def __getitem__(self, address: str) -> Link:
        link = self._links.get(address)
        if link is None:
            link = Link(address, max_message_bytes=self._max_message_bytes)
            self._links[address] = link
        return link

    def follow(self, _snapshot: Snapshot, change: Change) -> None:
        stale: set[str] = set()
        for key in change.gone:
            address = key[1]
            known = self._known.get(address, {})
            known.pop(key, None)
            if not known:
                self._known.pop(address, None)
                stale.add(address)
        for key, entry in change.put.items():
            address, known = key[1], self._known.setdefault(key[1], {})
            # A server that registers again is up: a channel that still backs off from its last
            # failure would keep calls away from it.
            if known.get(key) is not entry.endpoint:
                known[key] = entry.endpoint
                stale.discard(address)
                if address in self._links and not self._links[address].ready():
                    stale.add(address)
        links = [self._links.pop(address) for address in stale if address in self._links]
        if links:
            self._retired = {old for old in self._retired if old.calls}.union(links)
            for link in links:
                link.retire()

    async def close(self) -> None:
        for link in (*self._links.values(), *self._retired):
            await link.close()
