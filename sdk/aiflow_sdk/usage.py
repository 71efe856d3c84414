"""Credits and usage, seen and given by a program: see aiflow.admin.v1.UsageService.

with Client() as client:
    admin = UsageAdmin(client)
    admin.top_up("acme", 1000, note="order 4711")
    for one in admin.usage("acme", by=("day", "model")):
        print(one.day, one.model, one.calls, one.credits)

Amounts are credits, exact to the sixth decimal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from aiflow.admin.v1 import usage_pb2 as pb
from aiflow.admin.v1 import usage_pb2_grpc
from aiflow_sdk.client import Client
from aiflow_sdk.errors import BadInputError

R = TypeVar("R")

PAGE = 500
MICRO = 1_000_000
# More fits into no message.
_COUNTED = 2**63
# An export of a year may take a while.
EXPORT_WITHIN_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is in an account, and what was after it was last given some."""

    account: str
    credits: Decimal
    full: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What came of a grant; `again`: it had been done before, and was not done again."""

    balances: tuple[Balance, ...]
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One movement of credits; the amounts in `entries`, by account, sum to 0."""

    number: int
    at_s: float
    """Unix time."""
    kind: str
    request_id: str
    """Of the call that pays; empty for what people did."""
    actor: str
    note: str
    entries: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An account that ran "low" (a tenth left) or out ("none")."""

    number: int
    at_s: float
    """Unix time."""
    account: str
    level: str
    credits: Decimal
    full: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used; what was added up over is empty."""

    day: str
    tenant: str
    department: str
    member: str
    key: str
    model: str
    calls: int
    failed: int
    tokens: float
    pixels: float
    gpu_ms: float
    bytes: int
    credits: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which usage is asked for; what is empty is any, and the last 30 days."""

    tenant: str = ""
    from_day: str = ""
    """As 2026-11-24, in UTC."""
    to_day: str = ""
    department: str = ""
    member: str = ""
    model: str = ""

    def message(self) -> pb.UsageFilter:
        return pb.UsageFilter(
            tenant=self.tenant,
            from_day=self.from_day,
            to_day=self.to_day,
            department=self.department,
            member=self.member,
            model=self.model,
        )


class UsageAdmin:
    """Every method raises an `AiflowError` of the class that fits.

    Where `tenant` is empty it is the caller's own, and of usage and alerts every tenant's for a
    platform admin. Lists ask for the next page when it is needed.
    """

    def __init__(self, client: Client) -> None:
        self._stub = client.stub(usage_pb2_grpc.UsageServiceStub)

    def top_up(
        self, tenant: str, amount: Decimal | float | str, *, note: str = "", reference: str = ""
    ) -> Grant:
        """Gives a tenant's pool credits; a platform admin may.

        Args:
            tenant: whose.
            amount: how many credits.
            note: why, for people.
            reference: of what it is for, such as an order: under one it is done once. Empty for
                a new one.
        """
        answer = self._stub.TopUp(
            pb.TopUpRequest(
                tenant=tenant,
                micro_credits=_micro(amount),
                note=note,
                reference=reference or uuid.uuid4().hex,
            )
        )
        return Grant(balances=(_balance(answer.balance),), again=answer.again)

    def allocate(
        self,
        amount: Decimal | float | str,
        *,
        tenant: str = "",
        source: str = "",
        target: str = "",
        note: str = "",
        reference: str = "",
    ) -> Grant:
        """Moves credits from `source` to `target`.

        Both are "pool", "department:NAME" or "member:NAME"; empty for the pool. The rest is as
        with `top_up`.
        """
        answer = self._stub.Allocate(
            pb.AllocateRequest(
                tenant=tenant,
                source=source,
                target=target,
                micro_credits=_micro(amount),
                note=note,
                reference=reference or uuid.uuid4().hex,
            )
        )
        return Grant(
            balances=(_balance(answer.source), _balance(answer.target)), again=answer.again
        )

    def balances(self, tenant: str = "") -> tuple[Balance, ...]:
        """What is in the accounts that the caller may see."""
        answer = self._stub.Balances(pb.BalancesRequest(tenant=tenant))
        return tuple(map(_balance, answer.balances))

    def transfers(self, tenant: str = "", *, account: str = "") -> Iterator[Transfer]:
        """What moved credits, the latest first."""
        request = pb.ListTransfersRequest(tenant=tenant, account=account)
        return _pages(self._stub.ListTransfers, request, "transfers", _transfer)

    def alerts(self, tenant: str = "") -> Iterator[Alert]:
        """Accounts that ran low or out, the latest first."""
        return _pages(self._stub.ListAlerts, pb.ListAlertsRequest(tenant=tenant), "alerts", _alert)

    def usage(self, which: Which | str = "", *, by: Sequence[str] = ("model",)) -> Iterator[Usage]:
        """What was used, added up over what is not in `by`.

        Args:
            which: a filter, or the tenant.
            by: any of "day", "tenant", "department", "member", "key" and "model".
        """
        request = pb.ListUsageRequest(filter=_filter(which), by=by)
        return _pages(self._stub.ListUsage, request, "usage", _usage)

    def export(self, which: Which | str = "") -> Iterator[str]:
        """The same as CSV, in whole lines: one for each day, caller and model."""
        request = pb.ExportUsageRequest(filter=_filter(which))
        for part in self._stub.ExportUsage(request, timeout=EXPORT_WITHIN_S):
            yield part.csv


def _filter(which: Which | str) -> pb.UsageFilter:
    return (Which(tenant=which) if isinstance(which, str) else which).message()


def _micro(amount: Decimal | float | str) -> int:
    try:
        found = Decimal(str(amount)) * MICRO
        exact = found == found.to_integral_value() and abs(found) < _COUNTED
    except ArithmeticError:
        exact = False
    if not exact:
        raise BadInputError(
            f'"{amount}" is no amount of credits: write a number such as 2 or 0.25, with 6 '
            "decimals at most"
        )
    return int(found)


def _credits(micro: int) -> Decimal:
    return Decimal(micro) / MICRO


def _balance(found: pb.Balance) -> Balance:
    return Balance(
        account=found.account,
        credits=_credits(found.micro_credits),
        full=_credits(found.full_micro_credits),
    )


def _transfer(found: pb.Transfer) -> Transfer:
    return Transfer(
        number=found.number,
        at_s=found.at_unix_ms / 1000,
        kind=found.kind,
        request_id=found.request_id,
        actor=found.actor,
        note=found.note,
        entries={entry.account: _credits(entry.micro_credits) for entry in found.entries},
    )


def _alert(found: pb.Alert) -> Alert:
    return Alert(
        number=found.number,
        at_s=found.at_unix_ms / 1000,
        account=found.account,
        level=found.level,
        credits=_credits(found.micro_credits),
        full=_credits(found.full_micro_credits),
    )


def _usage(found: pb.Usage) -> Usage:
    return Usage(
        day=found.day,
        tenant=found.tenant,
        department=found.department,
        member=found.member,
        key=found.key,
        model=found.model,
        calls=found.calls,
        failed=found.failed,
        tokens=found.tokens,
        pixels=found.pixels,
        gpu_ms=found.gpu_ms,
        bytes=found.bytes,
        credits=_credits(found.micro_credits),
    )


def _pages(
    ask: Callable[[Any], Any], request: Any, field: str, record: Callable[[Any], R]
) -> Iterator[R]:
    request.page_size = PAGE
    while True:
        answer = ask(request)
        yield from map(record, getattr(answer, field))
        request.page_token = answer.next_page_token
        if not request.page_token:
            return
