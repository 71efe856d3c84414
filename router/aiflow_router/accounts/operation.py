"""What can be done to the ledger, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from aiflow_router.accounts import account
from aiflow_router.accounts.account import Who

State = Literal["held", "settled", "released"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Sets aside what a call may cost.

    Attributes:
        token: of this try: what is done later is done to its hold and no other.
        amount: in micro-credits, as all amounts.
    """

    who: Who
    request_id: str
    token: str
    amount: int
    expires_s: float

    def accounts(self) -> frozenset[str]:
        return self.who.accounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Spends of a hold what the call did cost, at most what was held; the rest goes back."""

    who: Who
    request_id: str
    token: str
    amount: int

    def accounts(self) -> frozenset[str]:
        return self.who.accounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Gives back what is held.

    Attributes:
        refund: gives back what was spent too: the call's answer was never given.
        payer: whose it is, where that is known and `who` may not say.
        expired: nobody did it in time.
    """

    who: Who
    request_id: str
    token: str
    refund: bool = False
    payer: str = ""
    expired: bool = False

    def accounts(self) -> frozenset[str]:
        return self.who.accounts() | ({self.payer} if self.payer else frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    """Gives a tenant credits; done once under each reference."""

    tenant: str
    amount: int
    actor: str
    note: str
    reference: str

    def accounts(self) -> frozenset[str]:
        return frozenset({account.ISSUED, *self.made()})

    def made(self) -> tuple[str, ...]:
        """Accounts that are made where they are not there yet."""
        return account.pool(self.tenant), account.held(self.tenant), account.spent(self.tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocate:
    """Moves credits between two accounts of a tenant; done once under each reference."""

    tenant: str
    source: str
    target: str
    amount: int
    actor: str
    note: str
    reference: str

    def accounts(self) -> frozenset[str]:
        return frozenset({self.source, self.target, account.held(self.tenant)})

    def made(self) -> tuple[str, ...]:
        return (self.target,)


Operation: TypeAlias = Hold | Settle | Release | TopUp | Allocate


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Done, now or before.

    Attributes:
        payer: who pays; of a hold.
        amount: what was moved: held, spent, given back or granted.
        again: it had been done before, and was not done a second time.
    """

    payer: str = ""
    amount: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Not done, and nothing has changed.

    Attributes:
        why: "duplicate": the id has credits held or spent; "out": nobody has enough; "lost": what
            was to be settled was never held, or another call has its id by now; "other": the
            reference was used for something else; "much": more than can be counted.
        subject: the account that has too little; the state of the duplicate.
        balances: of those that could have paid.
    """

    why: Literal["duplicate", "out", "lost", "other", "much"]
    subject: str = ""
    balances: Mapping[str, int] | None = None


Outcome: TypeAlias = Done | Refused
