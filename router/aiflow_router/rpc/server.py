"""The servers behind the doors, and the addresses they listen on."""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
from aiohttp import web

from aiflow_router.config.listen import Listen
from aiflow_router.forwarding.link import TRANSPORT
from aiflow_router.rpc.tls import server_credentials

KEEPALIVE_MS = 20_000
# gRPC's keepalive timeout has no effect while this one is at its minute.
PING_TIMEOUT_MS = 5_000
HANDSHAKE_MS = 10_000
IDLE_MS = 300_000


class AddressInUseError(Exception):
    """An address to listen on is taken; the message says which and what to do."""


def grpc_server(listen: Listen, *, shared: bool) -> grpc.aio.Server:
    """Of this process alone, or `shared` with others at its address."""
    age_s = listen.connection_age_s()
    ages = [] if age_s is None else [("grpc.max_connection_age_ms", round(age_s * 1000))]
    return grpc.aio.server(
        options=[
            *ages,
            # Twice the real limit: the router itself refuses what is between with a clear error.
            ("grpc.max_receive_message_length", 2 * listen.max_message_mb * 1024 * 1024),
            ("grpc.max_send_message_length", -1),
            *TRANSPORT,
            *(() if listen.compression else (("grpc.compression_enabled_algorithms_bitset", 1),)),
            # Else a second router on the same port would silently take half of the calls; where
            # processes share it on purpose, their supervisor sees to it that they are one router's.
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_concurrent_streams", listen.max_concurrent_streams),
            ("grpc.max_allowed_incoming_connections", listen.max_connections),
            # Who connects and says nothing, or says it a byte at a time, is let go.
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.http2.settings_timeout", HANDSHAKE_MS),
            # Callers connect again by themselves, so a connection without calls costs only memory.
            ("grpc.max_connection_idle_ms", IDLE_MS),
            # Finds a caller that vanished without a word: a stream may have no deadline to end it.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),  # Silent streams too, as often.
            # Callers may ping as they like. Where gRPC counts pings and says "too many", a flood of
            # them costs 1 KB of memory each; without that they are bounded by unread answers.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def listen_grpc(server: grpc.aio.Server, listen: Listen) -> str:
    """The address with its real port. Raises AddressInUseError, CertificateError."""
    address = listen.grpc
    credentials = None if listen.tls is None else server_credentials(listen.tls)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise in_use_grpc(address, error) from None
    return f"{address.rpartition(':')[0]}:{port}"


async def listen_http(stack: AsyncExitStack, app: web.Application, address: str) -> str:
    """The address with its real port. Raises AddressInUseError."""
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host.strip("[]"), int(port))
    try:
        await site.start()
    except OSError as error:
        raise _in_use(address, "HTTP", "--http HOST:PORT", "listen.http", error) from None
    bound = runner.addresses[0]
    return f"{host}:{bound[1]}"


async def listen_inside(stack: AsyncExitStack, app: web.Application, path: Path) -> str:
    """On a Unix socket."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.UnixSite(runner, str(path)).start()
    return f"unix:{path}"


def in_use_grpc(address: str, error: Exception) -> AddressInUseError:
    return _in_use(address, "gRPC", "--grpc HOST:PORT", "listen.grpc", error)


def _in_use(address: str, what: str, flag: str, key: str, error: Exception) -> AddressInUseError:
    why = (
        "is already in use"
        if isinstance(error, RuntimeError) or getattr(error, "errno", 0) == errno.EADDRINUSE
        else f"cannot be listened on ({error})"
    )
    return AddressInUseError(
        f"{what} address {address} {why}: stop what listens there, or choose another with "
        f"`{flag}` or `{key}` in aiflow.yaml (port 0 takes any free one)"
    )
