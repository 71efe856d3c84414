"""Credits in double entry: accounts, transfers between them, and what calls hold.

Amounts are whole micro-credits, so that nothing is ever rounded away. The entries of a transfer sum
to 0, and so do all balances. Only `issued` may be below 0: by what was ever given out.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from aiflow_router.storage.tables.base import METADATA
from aiflow_router.storage.tables.tenancy import SERIAL

ACCOUNTS = Table(
    "accounts",
    METADATA,
    # As `accounts.account` writes it: "issued", "pool:acme", "member:acme/ann".
    Column("account", Text, primary_key=True),
    # "" for `issued`, which is everybody's.
    Column("tenant", Text, nullable=False),
    Column("balance", BigInteger, nullable=False),
    # What was in it after the last grant, and which alert was told since: see `accounts.alert`.
    Column("full", BigInteger, nullable=False),
    Column("told", SmallInteger, nullable=False),
    CheckConstraint("balance >= 0 OR account = 'issued'", name="balance"),
    Index("ix_accounts_tenant", "tenant"),
)

TRANSFERS = Table(
    "transfers",
    METADATA,
    Column("number", SERIAL, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    # "top_up", "allocate", "hold", "settle", "release", "expire", "refund".
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    # Of the call that paid; "" for what people did.
    Column("request_id", Text, nullable=False),
    # Who did it, "tenant/member (key)", and why they say they did; "" for calls.
    Column("actor", Text, nullable=False),
    Column("note", Text, nullable=False),
    # What people did is done once under each reference; None for calls.
    Column("reference", Text),
    UniqueConstraint("tenant", "reference"),
    Index("ix_transfers_tenant", "tenant", "number"),
)

ENTRIES = Table(
    "entries",
    METADATA,
    Column("number", BigInteger, ForeignKey("transfers.number"), primary_key=True),
    Column("account", Text, ForeignKey("accounts.account"), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Index("ix_entries_account", "account", "number"),
)

# One row a request id that ever held credits; it makes a second call with the id a duplicate.
HOLDS = Table(
    "holds",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    # "held", "settled" or "released".
    Column("state", Text, nullable=False),
    Column("payer", Text, ForeignKey("accounts.account"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    # Of one try: a router that is late settles no hold but its own.
    Column("token", Text, nullable=False),
    Column("expires_s", Float, nullable=False),
    Index("ix_holds_state_expires_s", "state", "expires_s"),
)

ALERTS = Table(
    "alerts",
    METADATA,
    Column("number", SERIAL, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("account", Text, nullable=False),
    # "low" or "none".
    Column("level", Text, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("full", BigInteger, nullable=False),
    Index("ix_alerts_tenant", "tenant", "number"),
)
