"""What the supervisor owns, as its workers reach it: catalog and policy on a Unix socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import orjson
import structlog
from google.protobuf.message import DecodeError, Message
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow.admin.v1 import explain_pb2
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.endpoint import Endpoint, Key, State
from aiflow_router.policy.desk import Desk
from aiflow_router.processes.child import Child
from aiflow_router.rpc import asker, explain, policy, tenancy
from aiflow_router.rpc.asker import UNTOLD, Asker, heard
from aiflow_router.rpc.registry import SERVICE, WATCH, Registry, Seen
from aiflow_router.rpc.visit import Context
from aiflow_router.rpc.watch import Watchers
from aiflow_sdk import errors, status

_log = structlog.get_logger(__name__)

# What registers is answered when every worker sends calls to it, or after this time.
CONFIRMED_WITHIN_S = 1.0


# Of the call that is answered in this task: who called the worker.
ASKER: ContextVar[Asker] = ContextVar("asker", default=UNTOLD)

Works = Mapping[str, tuple[type[Message], Callable[[Any], Awaitable[bytes]]]]


class Owner:
    """Answers workers. Keys were checked by them, and the socket's folder is this user's alone."""

    def __init__(
        self,
        catalog: Catalog,
        desk: Desk,
        engine: AsyncEngine | None,
        children: Callable[[], Sequence[Child]],
    ) -> None:
        self._catalog = catalog
        self._policy = policy.Service(desk, everywhere=self._policy_everywhere)
        self._tenancy = tenancy.service(engine, everywhere=self.directory_everywhere)
        self._children = children
        self._watchers = Watchers()
        self._registry = Registry(catalog=catalog, seen=self._seen, shown=self._shown)
        self._confirmed = 0
        self._confirming: dict[int, asyncio.Task[None]] = {}
        catalog.follow(self._watchers.follow)

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        replays = {"Replay": (explain_pb2.ReplayRequest, self._replay)}
        server.add_generic_rpc_handlers(
            (
                _handler(SERVICE, self._registry.works(), WATCH, self._watchers.changes),
                _handler(policy.SERVICE, self._policy_works(), policy.WATCH, self._policy.changes),
                _handler(explain.SERVICE, replays),
                _handler(tenancy.SERVICE, _asked_by(self._tenancy.works())),
            )
        )
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield
        finally:
            self._watchers.close()
            self._policy.close()
            await server.stop(None)

    def _policy_works(self) -> Works:
        def told(work: policy.Work) -> Callable[[Any], Awaitable[bytes]]:
            async def answer(request: Any) -> bytes:
                return (await work(request, ASKER.get().caller.tenant)).SerializeToString()

            return answer

        return {name: (kind, told(work)) for name, (kind, work) in self._policy.works().items()}

    async def _policy_everywhere(self, number: int) -> None:
        """Returns when every worker goes by the change; see CONFIRMED_WITHIN_S."""
        await self._asked(f"/policy/{number}", "the policy")

    async def directory_everywhere(self, number: int) -> None:
        """Returns when every worker has taken in this row of the audit log; as above."""
        await self._asked(f"/directory/{number}", "tenants and keys")

    async def _replay(self, request: explain_pb2.ReplayRequest) -> bytes:
        """What the workers remember of the calls with one id."""
        children = self._children()
        path = f"/trail?request_id={quote(request.request_id, safe='')}"
        answers = await asyncio.gather(*(child.ask(path) for child in children))
        traces: list[explain_pb2.Trace] = []
        for child, answer in zip(children, answers, strict=True):
            for trace in explain_pb2.ReplayResponse.FromString(answer or b"").traces:
                trace.worker = child.name
                traces.append(trace)
        silent = [
            child.name for child, answer in zip(children, answers, strict=True) if answer is None
        ]
        if silent:
            _log.warning("workers were not heard about a call", workers=silent)
        return explain.found(traces, request.request_id)

    async def _shown(self, key: Key) -> None:
        """Returns when every worker has what was last said of `key`; see CONFIRMED_WITHIN_S."""
        await self._catalog.shown(key)
        version = self._catalog.snapshot.version
        if version <= self._confirmed:
            return
        task = self._confirming.get(version)
        if task is None:
            task = self._confirming[version] = asyncio.create_task(self._confirm(version))
            task.add_done_callback(lambda _: self._confirming.pop(version))
        await asyncio.shield(task)  # Others may wait for it too.

    async def _confirm(self, version: int) -> None:
        await self._asked(f"/version/{version}", "the catalog")
        self._confirmed = max(self._confirmed, version)

    async def _asked(self, path: str, what: str) -> None:
        """Returns when every worker has answered, or is too late."""
        children = self._children()
        answers = await asyncio.gather(
            *(child.ask(path, within_s=CONFIRMED_WITHIN_S) for child in children)
        )
        silent = [
            child.name for child, answer in zip(children, answers, strict=True) if answer is None
        ]
        if silent:
            _log.warning(f"workers did not confirm a change of {what}", workers=silent)

    async def _seen(self) -> Seen:
        """Of all workers: their calls in flight summed, and the worst that one of them sees."""
        inflight: Counter[Key] = Counter()
        worst: dict[Key, State] = {}
        answers = await asyncio.gather(*(child.ask("/endpoints") for child in self._children()))
        for answer in answers:
            for backend, address, state, calls in orjson.loads(answer or b"[]"):
                key = (backend, address)
                inflight[key] += calls
                worst[key] = max(worst.get(key, State.READY), State(state))

        def seen(endpoint: Endpoint) -> tuple[State, int]:
            state = self._catalog.snapshot.entries[endpoint.key].state
            if state is State.READY:
                state = worst.get(endpoint.key, state)
            return state, inflight[endpoint.key]

        return seen


def _asked_by(works: asker.Works) -> Works:
    def told(work: asker.Work) -> Callable[[Any], Awaitable[bytes]]:
        async def answer(request: Any) -> bytes:
            return (await work(request, ASKER.get())).SerializeToString()

        return answer

    return {name: (kind, told(work)) for name, (kind, work) in works.items()}


def _handler(
    service: str,
    works: Works,
    watch: str = "",
    changes: Callable[[], AsyncIterator[bytes]] | None = None,
) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(_answering(kind, work))
        for name, (kind, work) in works.items()
    }
    if changes is not None:
        name = watch.rpartition("/")[2]
        methods[name] = grpc.unary_stream_rpc_method_handler(_watching(changes))
    return grpc.method_handlers_generic_handler(service, methods)


def _watching(
    changes: Callable[[], AsyncIterator[bytes]],
) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def watched(_: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async for change in changes():
                yield change
        except errors.AiflowError as error:
            await _abort(context, error)

    return watched


def _answering(
    kind: type[Message], work: Callable[[Any], Awaitable[bytes]]
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def answer(request: bytes, context: Context) -> bytes:
        ASKER.set(heard(context.invocation_metadata() or ()))
        try:
            return await work(kind.FromString(request))
        except DecodeError as error:
            await _abort(
                context,
                errors.BadInputError(
                    f"the request is not a valid {kind.DESCRIPTOR.full_name}: {error}"
                ),
            )
        except errors.AiflowError as error:
            await _abort(context, error)
        raise AssertionError("abort raises")

    return answer


async def _abort(context: Context, error: errors.AiflowError) -> None:
    await context.abort(status.status_code(error), error.message, tuple(status.to_trailers(error)))
