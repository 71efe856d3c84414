"""The HTTP side of a server: /healthz (alive), /readyz (takes calls), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from aiflow_servers.runtime import address
from aiflow_servers.runtime.metrics import Metrics


@asynccontextmanager
async def serving_http(
    listen: str, *, metrics: Metrics, ready: Callable[[], bool]
) -> AsyncIterator[str]:
    """Serves the three pages at `listen`; gives the address that it got.

    Raises:
        OSError: the address is taken, or not ours.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ready\n")
        return web.Response(text="not ready: starting, draining or without workers\n", status=503)

    async def page(_request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", page)]
    )
    # Our own access log has a line a call; a scrape every few seconds says nothing.
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        host, port = address.split(listen)
        await web.TCPSite(runner, host, port).start()
        yield address.join(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
