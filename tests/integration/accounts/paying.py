"""A router whose callers pay: model `m` costs 2 credits, `t` by tokens, and `free` nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from integration.identity.kit import Office
from integration.router.kit import Backend, Handle, Mesh, backend, echo, infer, mesh
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.account import MICRO
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.statement import audited, balances, lines
from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ROUTES = """
routes:
  - match: {model: m}
    price: 2
  - match: {model: t}
    price: {call: 1, tokens: 0.01}
  - match: {model: cached}
    price: {call: 1, tokens: 0.01, assume: {tokens: 100}}
    cache: {ttl: 60s}
  - match: {model: worse}
    price: 3
    fallback: {to: [free]}
  - match: {service: a.Echo}
    price: 0.5
"""
MODELS = "[m, t, free, cached]"


@dataclass
class Paying:
    mesh: Mesh
    server: Backend
    key: str
    office: Office
    calls: int = field(default=0)

    @property
    def engine(self) -> AsyncEngine:
        assert self.mesh.router.engine is not None
        return self.mesh.router.engine

    @property
    def ledger(self) -> Ledger:
        found = self.mesh.router.front.admission.payments.ledger
        assert found is not None
        return found

    def metadata(self, request_id: str = "", units: str = "") -> tuple[tuple[str, str], ...]:
        self.calls += 1
        return (
            ("x-api-key", self.key),
            ("x-request-id", request_id or f"call-{self.calls}"),
            *((("x-aiflow-units", units),) if units else ()),
        )

    async def call(
        self, model: str = "m", *, request_id: str = "", units: str = "", method: str = INFER
    ) -> bytes:
        answer: bytes = await self.mesh.channel.unary_unary(method)(
            infer(model), metadata=self.metadata(request_id, units), timeout=10
        )
        return answer

    async def refused(self, model: str = "m", **said: str) -> errors.AiflowError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(model, **said)
        return status.from_rpc_error(caught.value)

    async def top_up(self, amount: int, *, reference: str = "more") -> None:
        await self.ledger.top_up("acme", amount * MICRO, actor="root", note="", reference=reference)

    async def settled(self) -> None:
        """What was to be given back is."""
        await self.ledger.commits.idle()

    async def left(self, account: str = "pool:acme") -> float:
        """In credits, once all is written and adds up."""
        await self.settled()
        assert (await audited(self.engine)).imbalance == 0
        found = {one.account: one.balance for one in await balances(self.engine, "acme")}
        return found[account] / MICRO

    async def kinds(self) -> list[str]:
        """Of the newest transfers, the oldest first."""
        await self.settled()
        found = await lines(self.engine, "acme", accounts=None, before=None, most=20)
        return [line.kind for line in reversed(found)]


@asynccontextmanager
async def paying(
    url: str, folder: Path, *, pool: int = 10, routes: str = ROUTES, **methods: Handle
) -> AsyncIterator[Paying]:
    """With `pool` credits; `methods` are the backend's."""
    given: dict[str, Any] = {"ModelInfer": echo, "ModelStreamInfer": echo, **methods}
    async with backend(**given) as server:
        at = server.address
        listed = (
            "discovery:\n  static:\n"
            f"    - {{backend: b, address: '{at}', protocol: oip, models: {MODELS}}}\n"
            "    - {backend: d, address: '127.0.0.1:1', protocol: oip, models: [worse]}\n"
            f"    - {{backend: c, address: '{at}', protocol: grpc, services: [a.Echo]}}\n"
        )
        config = (
            f"auth: {{mode: required, admin_key_file: '{folder / 'admin.key'}'}}\n"
            f"storage: {{url: '{url}'}}\n"
        )
        async with mesh(listed + config + routes) as running:
            assert running.router.engine is not None
            office = Office(running.router.engine)
            await office.tenant("acme", when_out="pool")
            await office.department("acme", "ml")
            await office.member("acme", "ann", department="ml")
            made = await office.key("acme", "ann")
            number = await office.change_key(made.key, name="k")
            assert running.router.directory is not None
            await running.router.directory.reached(number)
            found = Paying(mesh=running, server=server, key=made.text, office=office)
            if pool:
                await found.top_up(pool, reference="first")
            yield found
