"""What a call costs: held before it goes anywhere, and paid before its answer is given.

A call pays by the route that it asked for, whoever answers. It pays nothing where it fails, or is
cancelled before its answer begins. Who ends a stream that has begun to answer pays as if it had
come to its end: else all but the end could be had for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aiflow_router.accounts.account import Who
from aiflow_router.accounts.bill import Bill
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.forwarding.metadata import UNITS
from aiflow_router.routing.policy import Policies, Policy
from aiflow_router.routing.price import Price
from aiflow_router.rpc.visit import Visit
from aiflow_router.tasks import whole
from aiflow_sdk import errors

# Beyond the time that a call may take: for its turn at the database, here and at the end.
GRACE_S = 30.0
# Streams have no time; what one holds that is longer is given back, and it pays at its end.
STREAM_S = 3600.0
# How long an answer waits for the database until it is not given.
SETTLE_WITHIN_S = 5.0
# Its caller has ended the call.
_CALLERS_ENDS = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Of a route; `timeout_s` is what a call may take."""

    price: Price
    timeout_s: float


class Payments:
    """Lives in one event loop.

    Attributes:
        some: a call may cost something; where none does nobody need ask.
        ledger: None until the database is open, and where there is none.
    """

    def __init__(self, policies: Policies | None = None) -> None:
        self.ledger: Ledger | None = None
        self.some = False
        self._tariffs: Mapping[tuple[str, str], Tariff] = {}
        self.swap(policies or Policies())

    def swap(self, policies: Policies) -> None:
        """Lets new calls pay by `policies`."""
        both: tuple[tuple[str, Mapping[str, Policy]], ...] = (
            ("model", policies.models),
            ("service", policies.services),
        )
        self._tariffs = {
            (kind, name): Tariff(price=policy.price, timeout_s=policy.timeout_s)
            for kind, found in both
            for name, policy in found.items()
            if policy.price is not None
        }
        self.some = bool(self._tariffs)

    def tariff(self, kind: Literal["model", "service"], name: str) -> Tariff | None:
        """None where calls are free."""
        return self._tariffs.get((kind, name))

    async def hold(
        self, visit: Visit, tariff: Tariff, name: str, declared: Mapping[str, float]
    ) -> None:
        """Sets aside what the call may cost.

        Raises BadInputError where it must say how much it asks for, and what Ledger.hold raises.
        """
        price = tariff.price
        if missing := next(price.missing(declared), ""):
            raise errors.BadInputError(
                f'"{name}" is paid by {missing}, and this call does not say how many it may use: '
                f"send metadata `{UNITS}: {missing}=NUMBER`",
                violations={UNITS: f"names no {missing}"},
            )
        amount = price.most(declared)
        if not amount:
            return
        if self.ledger is None:
            raise errors.RefusedError(
                f'"{name}" costs credits, and this router has no database of them: set '
                "`storage: {url: ...}` in its aiflow.yaml, or leave out the `price` of the route",
                reason="NO_STORAGE",
            )
        caller = visit.caller
        taken = await self.ledger.hold(
            Who(tenant=caller.tenant, department=caller.department, member=caller.member),
            visit.request_id,
            amount,
            for_s=GRACE_S + (tariff.timeout_s if visit.unary else STREAM_S),
        )
        visit.bill = Bill(taken=taken, price=price, declared=declared)

    async def pay(self, visit: Visit) -> None:
        """Pays for a call that ends well; its answer is given after that.

        Raises UnavailableError: then nothing is paid in the end.
        """
        bill, visit.bill = visit.bill, None
        if bill is not None and self.ledger is not None:
            paid = self._settled(self.ledger, visit, bill)
            # Who goes away now has all of a stream but its end.
            await (whole(paid) if _has_answers(visit) else paid)

    def ended(self, visit: Visit) -> None:
        """Of a call that has ended otherwise: gives back what it held, or pays for its caller."""
        bill, visit.bill = visit.bill, None
        if bill is None or self.ledger is None:
            return
        by_caller = visit.code in _CALLERS_ENDS or visit.reason == "KEY_WITHDRAWN"
        if by_caller and _has_answers(visit):
            cost = _cost(visit, bill)
            visit.credits = min(cost, bill.taken.amount)
            self.ledger.settle_later(bill.taken, cost)
        else:
            self.ledger.release(bill.taken)

    @staticmethod
    async def _settled(ledger: Ledger, visit: Visit, bill: Bill) -> None:
        cost = _cost(visit, bill)
        visit.credits = await ledger.settle(bill.taken, cost, patience_s=SETTLE_WITHIN_S)


def _has_answers(visit: Visit) -> bool:
    """Its caller was given some. Of unary calls none are counted: theirs come all or not at all."""
    return visit.call is not None and visit.call.answers > 0


def _cost(visit: Visit, bill: Bill) -> int:
    """Who answered from what was kept took nothing but the call."""
    if visit.cache == "hit":
        return bill.price.call
    return bill.price.true(visit.used, bill.declared)
