"""`/healthz`, `/readyz` and `/metrics` over plain HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

Report = Callable[[], dict[str, Any]]


def application(
    *,
    ready: Callable[[], bool],
    report: Report,
    metrics: Callable[[], Awaitable[bytes]],
    known: Callable[[], bool] = lambda: True,
) -> web.Application:
    """The HTTP side.

    Args:
        ready: whether new calls are welcome.
        report: what is served.
        metrics: the text of a scrape.
        known: whether it is known at all what is served.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        if not ready():
            return _json({"status": "draining", **report()}, status=503)
        if not known():
            return _json({"status": "waiting", **report()}, status=503)
        return _json({"status": "ready", **report()})

    async def text(_: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", text)
    return app


def _json(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
