"""`aiflow.admin.v1.UsageService`: credits and what was used.

Each worker answers by itself: what it says and changes is in the database, and nothing of it is
remembered in a process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow.admin.v1 import usage_pb2 as pb
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.report import Row
from aiflow_router.accounts.statement import Balance, Line, Told
from aiflow_router.accounts.usage import SUMS
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.rpc import asker
from aiflow_router.rpc.asker import Asker, Works, decoded
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.registry import Handlers
from aiflow_router.rpc.visit import Context, Visit
from aiflow_router.tenancy.accounting import Accounting, Asked, Grant
from aiflow_router.tenancy.book import PageOf, reached
from aiflow_sdk import errors

SERVICE = "aiflow.admin.v1.UsageService"
EXPORT = f"/{SERVICE}/ExportUsage"
_FRACTIONS = ("tokens", "pixels", "gpu_ms")


def handlers(front: Front, engine: AsyncEngine | None, ledger: Ledger | None) -> Handlers:
    """The handlers by full method; without a database each says so."""
    given = None
    if engine is not None and ledger is not None:
        given = Accounting(engine, ledger)
    service = Service(given)
    stream = front.stream(EXPORT, service.export_usage, right="key", label=SERVICE, quiet=True)
    return {**asker.handlers(front, SERVICE, service.works()), EXPORT: stream}


class Service:
    """What each call does; `accounting` is None where there is no database."""

    def __init__(self, accounting: Accounting | None) -> None:
        self._given = accounting

    def works(self) -> Works:
        """What takes which request, by name of method."""
        return {
            "TopUp": (pb.TopUpRequest, self.top_up),
            "Allocate": (pb.AllocateRequest, self.allocate),
            "Balances": (pb.BalancesRequest, self.balances),
            "ListTransfers": (pb.ListTransfersRequest, self.list_transfers),
            "ListAlerts": (pb.ListAlertsRequest, self.list_alerts),
            "ListUsage": (pb.ListUsageRequest, self.list_usage),
        }

    async def top_up(self, request: pb.TopUpRequest, by: Asker) -> pb.TopUpResponse:
        async with reached():
            done = await self._accounting.top_up(by.caller, _grant(request, by))
        return pb.TopUpResponse(balance=_balance(done.balances[0]), again=done.again)

    async def allocate(self, request: pb.AllocateRequest, by: Asker) -> pb.AllocateResponse:
        grant = _grant(request, by, source=request.source, target=request.target)
        async with reached():
            done = await self._accounting.allocate(by.caller, grant)
        source, target = done.balances
        return pb.AllocateResponse(
            source=_balance(source), target=_balance(target), again=done.again
        )

    async def balances(self, request: pb.BalancesRequest, by: Asker) -> pb.BalancesResponse:
        async with reached():
            found = await self._accounting.balances(by.caller, _tenant(request, by))
        return pb.BalancesResponse(balances=map(_balance, found))

    async def list_transfers(
        self, request: pb.ListTransfersRequest, by: Asker
    ) -> pb.ListTransfersResponse:
        async with reached():
            page = await self._accounting.transfers(
                by.caller, _tenant(request, by), _part(request), of_account=request.account
            )
        return pb.ListTransfersResponse(
            transfers=map(_transfer, page.items), next_page_token=page.next
        )

    async def list_alerts(self, request: pb.ListAlertsRequest, by: Asker) -> pb.ListAlertsResponse:
        async with reached():
            page = await self._accounting.alerts(by.caller, request.tenant, _part(request))
        return pb.ListAlertsResponse(alerts=map(_alert, page.items), next_page_token=page.next)

    async def list_usage(self, request: pb.ListUsageRequest, by: Asker) -> pb.ListUsageResponse:
        async with reached():
            page = await self._accounting.usage(
                by.caller, _asked(request.filter), _part(request), by=request.by
            )
        return pb.ListUsageResponse(usage=map(_usage, page.items), next_page_token=page.next)

    async def export_usage(self, visit: Visit, context: Context) -> Iterable[Pair]:
        """The work of a public handler."""
        request = await _only(context)
        # Who asks is refused before anything is written.
        parts = self._accounting.export(visit.caller, _asked(request.filter))
        async with reached():
            async for day, text in parts:
                part = pb.ExportUsageResponse(day=day, csv=text)
                await context.write(part.SerializeToString())
        return ()

    @property
    def _accounting(self) -> Accounting:
        if self._given is None:
            raise errors.RefusedError(
                "this router has no database, and so neither credits nor usage: add "
                "`storage: {url: sqlite:///aiflow.db}` to its aiflow.yaml and restart it",
                reason="NO_STORAGE",
            )
        return self._given


async def _only(context: Context) -> pb.ExportUsageRequest:
    """The request of a call that has one."""
    message: Any = await context.read()
    request: Message = decoded(pb.ExportUsageRequest, message if type(message) is bytes else b"")
    assert isinstance(request, pb.ExportUsageRequest)  # noqa: S101 - for mypy
    return request


def _tenant(request: Any, by: Asker) -> str:
    """The one asked for, else the caller's own."""
    return str(request.tenant or by.caller.tenant)


def _grant(request: Any, by: Asker, *, source: str = "", target: str = "") -> Grant:
    return Grant(
        tenant=_tenant(request, by),
        amount=request.micro_credits,
        note=request.note,
        reference=request.reference,
        source=source,
        target=target,
    )


def _part(request: Any) -> PageOf:
    return PageOf(size=request.page_size, token=request.page_token)


def _asked(found: pb.UsageFilter) -> Asked:
    return Asked(
        tenant=found.tenant,
        from_day=found.from_day,
        to_day=found.to_day,
        department=found.department,
        member=found.member,
        model=found.model,
    )


def _balance(found: Balance) -> pb.Balance:
    return pb.Balance(
        account=found.account, micro_credits=found.balance, full_micro_credits=found.full
    )


def _transfer(found: Line) -> pb.Transfer:
    return pb.Transfer(
        number=found.number,
        at_unix_ms=round(found.at_s * 1000),
        kind=found.kind,
        request_id=found.request_id,
        actor=found.actor,
        note=found.note,
        entries=(
            pb.Entry(account=account, micro_credits=amount) for account, amount in found.entries
        ),
    )


def _alert(found: Told) -> pb.Alert:
    return pb.Alert(
        number=found.number,
        at_unix_ms=round(found.at_s * 1000),
        account=found.account,
        level=found.level,
        micro_credits=found.balance,
        full_micro_credits=found.full,
    )


def _usage(found: Row) -> pb.Usage:
    """The sums as the database has them, which may be decimals there."""
    sums: dict[str, Any] = {name: float(found[name] or 0) for name in _FRACTIONS}
    sums |= {name: int(found[name] or 0) for name in ("calls", "failed", "bytes")}
    kept = {name: value for name, value in found.items() if name not in SUMS}
    return pb.Usage(**kept, **sums, micro_credits=int(found["credits"] or 0))
