"""What a worker tells its supervisor beyond what any router tells: over HTTP on a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import orjson
from aiohttp import web

from aiflow.admin.v1 import explain_pb2
from aiflow_router.balancing.census import Census
from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.endpoint import Endpoint, State
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.identity.directory import Directory
from aiflow_router.policy.policies import Policies
from aiflow_router.rpc.explain import traces
from aiflow_router.telemetry.journal import Journal

# [backend, address, state, calls in flight]
Doing = tuple[str, str, int, int]


StopListening = Callable[[int, int], Awaitable[None]]
"""Given this process's index among those that listen, and how many these are."""


def add_routes(
    app: web.Application,
    *,
    mirror: Mirror,
    policies: Policies,
    directory: Directory | None,
    census: Census,
    loads: Loads,
    journal: Journal,
    stop_listening: StopListening,
    end_steering: Callable[[], None],
    leave: asyncio.Event,
) -> None:
    """GET /version/N returns once the catalog here is at N, GET /policy/N once the policy is.

    GET /directory/N returns once row N of the audit log is taken in here: keys are as it says.
    GET /endpoints lists those that are not just ready and idle. GET /trail?request_id=ID tells what
    became of the calls with this id, as a serialized ReplayResponse. POST /leave/INDEX/OF returns
    once nobody listens here, and sets `leave`; then GET /others-left is asked of another worker.
    """

    async def version(request: web.Request) -> web.Response:
        await mirror.reached(int(request.match_info["version"]))
        return web.Response(status=204)

    async def policy(request: web.Request) -> web.Response:
        await policies.reached(int(request.match_info["number"]))
        return web.Response(status=204)

    async def keys(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if directory is None:
            raise web.HTTPNotFound
        await directory.reached(number)
        return web.Response(status=204 if directory.number >= number else 503)

    async def endpoints(_: web.Request) -> web.Response:
        listed = (entry.endpoint for entry in mirror.snapshot.entries.values())
        return web.Response(body=orjson.dumps(list(_doing(listed, census, loads))))

    async def trail(request: web.Request) -> web.Response:
        found = traces(journal, request.query["request_id"])
        return web.Response(body=explain_pb2.ReplayResponse(traces=found).SerializeToString())

    async def leaves(request: web.Request) -> web.Response:
        await stop_listening(int(request.match_info["index"]), int(request.match_info["of"]))
        leave.set()
        return web.Response(status=204)

    async def others_left(_: web.Request) -> web.Response:
        end_steering()
        return web.Response(status=204)

    app.router.add_get("/others-left", others_left)
    app.router.add_get("/version/{version}", version)
    app.router.add_get("/policy/{number}", policy)
    app.router.add_get("/directory/{number}", keys)
    app.router.add_get("/endpoints", endpoints)
    app.router.add_get("/trail", trail)
    app.router.add_post("/leave/{index}/{of}", leaves)


def _doing(listed: Iterable[Endpoint], census: Census, loads: Loads) -> Iterable[Doing]:
    for endpoint in listed:
        state, inflight = census.state(endpoint), loads[endpoint].inflight
        if inflight or state is not State.READY:
            yield endpoint.backend, endpoint.address, state, inflight
