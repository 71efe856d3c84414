"""How large the batches of models are: asked of the endpoints, by the protocol's ModelConfig.

Only models that a route balances by `batch_aware` are asked about. Until an endpoint has answered,
and for ever where its server has no ModelConfig or does not batch the model, it is not filled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.endpoint import Endpoint, Protocol
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.forwarding.inquiry import Inquiry
from aiflow_router.forwarding.link import Link, Links

_log = structlog.get_logger(__name__)

MODEL_CONFIG = "/inference.GRPCInferenceService/ModelConfig"
ANSWER_WITHIN_S = 2.0
# Parsing holds the event loop; real configurations are a few kilobytes.
MAX_ANSWER_BYTES = 1024 * 1024
# Looked at between calls, where models are to be asked about that were not.
ENDPOINTS_AT_ONCE = 200

Rooms = Mapping[str, int]


def room(config: model_config_pb2.ModelConfig) -> int:
    """Calls of one item in flight that keep the model's batches full; 0 where it does not batch.

    While every instance runs a batch one more gathers, and that is all: a further call would wait
    for the batch after it.
    """
    if config.max_batch_size < 1 or not config.HasField("dynamic_batching"):
        return 0
    # Triton sends a preferred size on as soon as it is there, and waits for no more.
    preferred = max(config.dynamic_batching.preferred_batch_size, default=0)
    size = preferred or config.max_batch_size
    if size == 1:
        return 0
    instances = sum(
        group.count * max(1, len(group.gpus))
        for group in config.instance_group
        if not group.passive
    )
    return int(size * (max(1, instances) + 1))


class Batches:
    """Keeps `Load.rooms` true for `models`. Lives in one event loop."""

    def __init__(self, *, links: Links, loads: Loads, models: frozenset[str]) -> None:
        self._links = links
        self._loads = loads
        self._models = models
        self._snapshot = Snapshot()
        self._inquiry = Inquiry(ask=self._ask, take=self._take)

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        """Asks each endpoint that is new or registered again, and forgets those that left."""
        self._snapshot = snapshot
        for key in change.gone:
            self._inquiry.forget(key)
        for key, entry in change.put.items():
            if entry.endpoint.protocol is Protocol.OIP and self._asked_about(entry.endpoint):
                self._inquiry.ask(entry.endpoint)
            else:
                self._inquiry.forget(key)

    async def change(self, models: frozenset[str]) -> None:
        """Asks about other models from here on; endpoints of new ones are asked again."""
        new, self._models = models - self._models, models
        if not new:
            return
        entries = self._snapshot.entries.items()
        for number, (key, entry) in enumerate(entries, start=1):
            if not new.isdisjoint(entry.endpoint.models) and key in self._snapshot.entries:
                self._inquiry.ask(entry.endpoint)
            if number % ENDPOINTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # Calls move on in between.

    def pending(self) -> int:
        """Endpoints that have not answered yet."""
        return self._inquiry.pending()

    def unknown(self) -> Mapping[str, int]:
        """By model, the endpoints whose batches cannot be filled, as their size is not known."""
        return Counter(
            model
            for endpoint in self._inquiry.endpoints().values()
            for model in self._asked_about(endpoint)
            if model not in self._loads[endpoint].rooms
        )

    async def close(self) -> None:
        await self._inquiry.close()

    def _asked_about(self, endpoint: Endpoint) -> Sequence[str]:
        if not self._models:
            return ()
        return tuple(model for model in endpoint.models if model in self._models)

    def _take(self, endpoint: Endpoint, rooms: Rooms | None) -> None:
        if rooms is not None:  # Else it has left, and its load with it.
            self._loads[endpoint].rooms = dict(rooms)

    async def _ask(self, endpoint: Endpoint) -> Rooms | None:
        """The rooms that the endpoint has; None: to be asked again."""
        link = self._links[endpoint.address]
        link.calls += 1
        found: dict[str, int] = {}
        try:
            if not (link.ready() or await link.connect(timeout_s=ANSWER_WITHIN_S)):
                return None
            for model in self._asked_about(endpoint):
                why = ""
                try:
                    found[model] = room(await _config(link, model))
                    why = "" if found[model] else "its configuration has no dynamic batching"
                except DecodeError as error:
                    why = f"its configuration cannot be read: {error}"
                except grpc.aio.AioRpcError as failure:
                    if failure.code() is not grpc.StatusCode.UNIMPLEMENTED:
                        return None  # Not there yet, it may be: its models are still loaded.
                    why = "its server has no ModelConfig"
                if why:
                    found.pop(model, None)
                    _log.warning(
                        "batches cannot be filled here: balanced by least_request instead",
                        model=model,
                        address=endpoint.address,
                        why=why,
                    )
                else:
                    _log.info(
                        "batches are filled here",
                        model=model,
                        address=endpoint.address,
                        calls=found[model],
                    )
        finally:
            link.call_ended()
        return found


async def _config(link: Link, model: str) -> model_config_pb2.ModelConfig:
    """Raises AioRpcError, DecodeError."""
    request = service_pb2.ModelConfigRequest(name=model).SerializeToString()
    answer = await link.ask(MODEL_CONFIG, request, timeout_s=ANSWER_WITHIN_S, metadata=())
    if len(answer.message) > MAX_ANSWER_BYTES:
        raise DecodeError(f"it has {len(answer.message)} bytes, more than {MAX_ANSWER_BYTES}")
    return service_pb2.ModelConfigResponse.FromString(answer.message).config
