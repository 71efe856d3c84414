"""Calls to a router that has limits, and what is left by them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from integration.router.kit import Handle, Mesh, backend, infer, mesh

from aiflow_router.limits.rule import Ask
from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ECHO = "/a.Echo/Echo"
Metadata = tuple[tuple[str, str], ...]


@dataclass
class Limited:
    """A router with limits, one backend of models m and n, and one of service a.Echo."""

    mesh: Mesh

    async def infer(self, model: str = "m", metadata: Metadata = ()) -> Mapping[str, Any]:
        """The trailers. Raises AiflowError."""
        call = self.mesh.channel.unary_unary(INFER)(infer(model), metadata=metadata, timeout=10)
        try:
            await call
        except grpc.aio.AioRpcError as failure:
            raise status.from_rpc_error(failure) from None
        return dict(tuple(await call.trailing_metadata()))

    async def refused(self, model: str = "m", metadata: Metadata = ()) -> errors.AiflowError:
        """The error that the call ends with."""
        try:
            await self.infer(model, metadata)
        except errors.AiflowError as error:
            return error
        raise AssertionError("it was answered")

    async def granted(self, times: int, *, model: str = "m", metadata: Metadata = ()) -> int:
        """How many of so many calls are let in."""
        found = 0
        for _ in range(times):
            try:
                await self.infer(model, metadata)
            except errors.RateLimitedError:
                continue
            found += 1
        return found

    async def left(self, bucket: str) -> float:
        """What is in a bucket."""
        admission = self.mesh.router.front.admission
        name = bucket.partition("|")[0]
        rule = next(rule for rule in admission.rules.all if rule.name == name)
        verdict = await admission.buckets.look([Ask(rule=rule, bucket=bucket, cost=0)])
        return verdict.standings[0].remaining

    def counted(self, rule: str) -> dict[str, int]:
        """Decisions of the rule, by result."""
        counts = self.mesh.router.front.admission.counts
        return {result: count for (name, result), count in counts.items() if name == rule and count}


@asynccontextmanager
async def limited(config: str, **methods: Handle) -> AsyncIterator[Limited]:
    async with backend(**methods) as models, backend(**methods) as services, mesh(config) as m:
        await m.register(models.address, models=("m", "n"), services=())
        await m.register(services.address, backend="services")
        yield Limited(m)


def keys(*tenants: str) -> str:
    """`auth:` with a key for each tenant, which is its name."""
    listed = ", ".join(
        f"{{name: {name}, tenant: {name}, sha256: {hashlib.sha256(name.encode()).hexdigest()}}}"
        for name in tenants
    )
    return f"auth: {{keys: [{listed}]}}\n"


def of(tenant: str) -> Metadata:
    return (("x-api-key", tenant),)
