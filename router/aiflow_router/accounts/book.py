"""The ledger's decisions, on what a batch of operations touches; nothing here knows a database.

`rows` reads a book, operations are applied to it one after the other, and what has changed is
written back, all in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiflow_router.accounts import account
from aiflow_router.accounts.account import Who
from aiflow_router.accounts.alert import Alert, Level, level
from aiflow_router.accounts.operation import (
    Allocate,
    Done,
    Hold,
    Operation,
    Outcome,
    Refused,
    Release,
    Settle,
    State,
    TopUp,
)
from aiflow_router.accounts.payer import Terms, order, payer

HoldKey = tuple[str, str]
"""Tenant and request id."""


@dataclass(slots=True, kw_only=True)
class Account:
    """As its row; see `storage.tables.ledger`."""

    tenant: str
    balance: int = 0
    full: int = 0
    told: Level = Level.ENOUGH


@dataclass(slots=True, kw_only=True)
class Held:
    """As its row."""

    state: State
    payer: str
    amount: int
    spent: int
    token: str
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """To be written; `entries` sum to 0."""

    kind: str
    tenant: str
    entries: Mapping[str, int]
    request_id: str = ""
    actor: str = ""
    note: str = ""
    reference: str | None = None


@dataclass(slots=True, kw_only=True)
class Book:
    """What a batch of operations may touch, and what they have changed of it.

    Attributes:
        accounts: that there are, by name.
        terms: by tenant, of those that are known.
        references: what was done before under references: the entries of each.
    """

    now_s: float
    accounts: dict[str, Account]
    holds: dict[HoldKey, Held] = field(default_factory=dict)
    terms: Mapping[str, Terms] = field(default_factory=dict)
    references: dict[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)
    changed_accounts: set[str] = field(default_factory=set)
    changed_holds: set[HoldKey] = field(default_factory=set)
    transfers: list[Transfer] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    def apply(self, operation: Operation) -> Outcome:
        return _APPLY[type(operation)](self, operation)

    def hold(self, wanted: Hold) -> Outcome:
        key = (wanted.who.tenant, wanted.request_id)
        before = self.holds.get(key)
        if before is not None and before.state != "released":
            if before.state == "held" and before.token == wanted.token:
                return Done(payer=before.payer, amount=before.amount, again=True)
            return Refused(why="duplicate", subject=before.state)
        asked = order(wanted.who, self.terms.get(wanted.who.tenant, Terms()), self.accounts)
        balances = {one: self.accounts[one].balance for one in asked}
        found = payer(asked, balances, wanted.amount)
        if found is None:
            if asked:
                self._look(asked[0], refused=True)
            subject = asked[0] if asked else account.pool(wanted.who.tenant)
            return Refused(why="out", subject=subject, balances=balances)
        self._move("hold", wanted, {found: -wanted.amount, _held(wanted): wanted.amount})
        self.holds[key] = Held(
            state="held",
            payer=found,
            amount=wanted.amount,
            spent=0,
            token=wanted.token,
            expires_s=wanted.expires_s,
        )
        self.changed_holds.add(key)
        self._look(found)
        return Done(payer=found, amount=wanted.amount)

    def settle(self, wanted: Settle) -> Outcome:
        found = self._own(wanted.who, wanted.request_id, wanted.token)
        if found is None:
            return Refused(why="lost")
        if found.state == "settled":
            return Done(payer=found.payer, amount=found.spent, again=True)
        spent = max(0, min(wanted.amount, found.amount))
        moved = {_held(wanted): -found.amount, found.payer: found.amount - spent}
        if found.state == "released":  # It expired, and the call went on: it pays what is there.
            spent = min(spent, self.accounts[found.payer].balance)
            moved = {found.payer: -spent}
        self._move("settle", wanted, {**moved, account.spent(wanted.who.tenant): spent})
        self._look(found.payer)
        found.state, found.spent = "settled", spent
        self.changed_holds.add((wanted.who.tenant, wanted.request_id))
        return Done(payer=found.payer, amount=spent)

    def release(self, wanted: Release) -> Outcome:
        found = self._own(wanted.who, wanted.request_id, wanted.token)
        if found is None or found.state == "released":
            return Done(again=True)
        if found.state == "settled":
            if not wanted.refund:
                return Done(again=True)
            amount, source, kind = found.spent, account.spent(wanted.who.tenant), "refund"
        else:
            amount, source = found.amount, _held(wanted)
            kind = "expire" if wanted.expired else "release"
        self._move(kind, wanted, {source: -amount, found.payer: amount})
        found.state, found.spent = "released", 0
        self.changed_holds.add((wanted.who.tenant, wanted.request_id))
        return Done(payer=found.payer, amount=amount)

    def top_up(self, wanted: TopUp) -> Outcome:
        pool = account.pool(wanted.tenant)
        given = -self.accounts[account.ISSUED].balance
        if wanted.amount + given > account.MOST_ISSUED:
            return Refused(why="much")
        return self._grant("top_up", wanted, source=account.ISSUED, target=pool)

    def allocate(self, wanted: Allocate) -> Outcome:
        return self._grant("allocate", wanted, source=wanted.source, target=wanted.target)

    def _grant(self, kind: str, wanted: TopUp | Allocate, *, source: str, target: str) -> Outcome:
        entries = {source: -wanted.amount, target: wanted.amount}
        before = self.references.get((wanted.tenant, wanted.reference))
        if before is not None:
            if before != entries:
                return Refused(why="other")
            return Done(amount=wanted.amount, again=True)
        payer = self.accounts.get(source)
        if payer is None or (source != account.ISSUED and payer.balance < wanted.amount):
            balance = 0 if payer is None else payer.balance
            return Refused(why="out", subject=source, balances={source: balance})
        self._move(kind, wanted, entries)
        self.references[wanted.tenant, wanted.reference] = entries
        filled = self.accounts[target]
        filled.full, filled.told = filled.balance, Level.ENOUGH
        # To give some away is not to use it up: what is left now is full.
        payer.full, payer.told = max(0, payer.balance), Level.ENOUGH
        return Done(amount=wanted.amount)

    def _own(self, who: Who, request_id: str, token: str) -> Held | None:
        found = self.holds.get((who.tenant, request_id))
        return found if found is not None and found.token == token else None

    def _move(self, kind: str, wanted: Operation, entries: Mapping[str, int]) -> None:
        entries = {one: amount for one, amount in entries.items() if amount}
        for one, amount in entries.items():
            self.accounts[one].balance += amount
            self.changed_accounts.add(one)
        self.transfers.append(
            Transfer(
                kind=kind,
                tenant=_tenant(wanted),
                entries=entries,
                request_id=getattr(wanted, "request_id", ""),
                actor=getattr(wanted, "actor", ""),
                note=getattr(wanted, "note", ""),
                reference=getattr(wanted, "reference", None),
            )
        )

    def _look(self, name: str, *, refused: bool = False) -> None:
        """Tells of an account that runs out, once of each level."""
        found = self.accounts[name]
        now = level(found.balance, found.full, refused=refused)
        if now <= found.told:
            return
        found.told = now
        self.changed_accounts.add(name)
        self.alerts.append(
            Alert(
                at_s=self.now_s,
                tenant=found.tenant,
                account=name,
                level=now.word,
                balance=found.balance,
                full=found.full,
            )
        )


def _tenant(wanted: Operation) -> str:
    return wanted.tenant if isinstance(wanted, TopUp | Allocate) else wanted.who.tenant


def _held(wanted: Hold | Settle | Release) -> str:
    return account.held(wanted.who.tenant)


# The other place to edit is `operation.Operation`.
_APPLY: Mapping[type, Callable[[Book, Any], Outcome]] = {
    Hold: Book.hold,
    Settle: Book.settle,
    Release: Book.release,
    TopUp: Book.top_up,
    Allocate: Book.allocate,
}
