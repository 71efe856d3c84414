"""Who asks for something that is decided by role; also where one process asks for another.

A worker has checked the key, and its supervisor decides: it is told who asks. Nobody else reaches
the supervisor's socket, so it believes what it is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
import orjson
from google.protobuf.message import DecodeError, Message

from aiflow_router.forwarding.metadata import Pair
from aiflow_router.identity.caller import NOBODY, Caller, Needs
from aiflow_router.rpc.front import Front, Unary
from aiflow_router.rpc.registry import Handlers
from aiflow_router.rpc.visit import Context, Visit
from aiflow_sdk import errors

HEADER = "x-aiflow-asker-bin"
# The owner waits for the database, its turn there, and for every worker.
RELAY_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A caller, and where the call came from, as gRPC writes it: "ipv4:127.0.0.1:50000"."""

    caller: Caller
    peer: str = ""

    def told(self) -> Pair:
        """For the process that decides."""
        caller = self.caller
        return (
            HEADER,
            orjson.dumps(
                {
                    "peer": self.peer,
                    "name": caller.name,
                    "tenant": caller.tenant,
                    "department": caller.department,
                    "member": caller.member,
                    "key": caller.key,
                    "role": caller.role,
                    "may": sorted(caller.may),
                }
            ),
        )


UNTOLD = Asker(caller=NOBODY)

Work = Callable[[Any, Asker], Awaitable[Message]]
"""Answers a request of the asker."""
Works = Mapping[str, tuple[type[Message], Work]]
"""What takes which request, by name of method."""


def heard(metadata: Iterable[tuple[str, str | bytes]]) -> Asker:
    """Who asks, as another process told it; a caller without any right where none did."""
    told = dict(metadata).get(HEADER)
    if told is None:
        return UNTOLD
    fields = orjson.loads(told)
    peer, may = fields.pop("peer"), frozenset(fields.pop("may"))
    return Asker(caller=Caller(may=may, **fields), peer=peer)


def handlers(
    front: Front, service: str, works: Works, *, needs: Mapping[str, Needs] | None = None
) -> Handlers:
    """The handlers by full method, of a router that decides itself.

    `needs` is of methods that need something else than a known key.
    """

    def typed(kind: type[Message], work: Work) -> Unary:
        async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
            answer = await work(decoded(kind, request), _asker(visit, context))
            context.set_trailing_metadata(visit.trailers())
            return answer.SerializeToString()

        return raw

    found = {name: typed(kind, work) for name, (kind, work) in works.items()}
    return _handlers(front, service, found, needs or {})


def relayed(
    front: Front,
    service: str,
    names: Iterable[str],
    *,
    owner: grpc.aio.Channel,
    needs: Mapping[str, Needs] | None = None,
) -> Handlers:
    """The same for a router that follows another process, which decides and answers."""

    def relay(name: str) -> Unary:
        # Raw bytes; the stubs infer Never from the missing serializers.
        ask: Any = owner.unary_unary(f"/{service}/{name}")

        async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
            told = (_asker(visit, context).told(),)
            answer: bytes = await ask(request, timeout=RELAY_WITHIN_S, metadata=told)
            context.set_trailing_metadata(visit.trailers())
            return answer

        return raw

    return _handlers(front, service, {name: relay(name) for name in names}, needs or {})


def decoded(kind: type[Message], request: bytes) -> Message:
    """Raises BadInputError."""
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise errors.BadInputError(
            f"the request is not a valid {kind.DESCRIPTOR.full_name}: {error}"
        ) from None


def _asker(visit: Visit, context: Context) -> Asker:
    return Asker(caller=visit.caller, peer=context.peer())


def _handlers(
    front: Front, service: str, works: Mapping[str, Unary], needs: Mapping[str, Needs]
) -> Handlers:
    return {
        f"/{service}/{name}": front.unary(
            f"/{service}/{name}", work, right=needs.get(name, "key"), label=service, quiet=True
        )
        for name, work in works.items()
    }
