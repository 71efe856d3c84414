"""Tenants, departments, members, their keys and invitations, and the log of every change.

Times are seconds since the epoch, as a float; None for never. A name is its own id, and so it
stays: what is disabled keeps its row, because usage and ledger name it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
)

from aiflow_router.storage.tables.base import METADATA

# SQLite numbers rows by itself only where the column is an INTEGER.
SERIAL = BigInteger().with_variant(Integer, "sqlite")

TENANTS = Table(
    "tenants",
    METADATA,
    Column("tenant", Text, primary_key=True),
    # Its share where tenants wait for the same.
    Column("weight", Float, nullable=False),
    # Which account pays first, "member" or "pool", and what happens when a member's is empty:
    # "refuse" or "pool".
    Column("pays_first", Text, nullable=False),
    Column("when_out", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("disabled_s", Float),
    CheckConstraint("weight > 0", name="weight"),
)

DEPARTMENTS = Table(
    "departments",
    METADATA,
    Column("tenant", Text, ForeignKey("tenants.tenant"), primary_key=True),
    Column("department", Text, primary_key=True),
    Column("created_s", Float, nullable=False),
    Column("disabled_s", Float),
)

MEMBERS = Table(
    "members",
    METADATA,
    Column("tenant", Text, ForeignKey("tenants.tenant"), primary_key=True),
    Column("member", Text, primary_key=True),
    Column("department", Text),
    Column("role", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("disabled_s", Float),
    ForeignKeyConstraint(
        ["tenant", "department"], ["departments.tenant", "departments.department"]
    ),
)

KEYS = Table(
    "keys",
    METADATA,
    # Its visible beginning.
    Column("key", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    # What its owner calls it.
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("member", Text, nullable=False),
    # Lists of patterns such as "gpt-*" and "/aiflow.imaging.v1.ImagingService/*"; None for all.
    Column("models", JSON(none_as_null=True)),
    Column("methods", JSON(none_as_null=True)),
    # Of "call", "register", "admin".
    Column("may", JSON, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float),
    Column("revoked_s", Float),
    # The key that it was made in place of, which lives on until its own `expires_s`.
    Column("instead_of", Text),
    Column("last_used_s", Float),
    ForeignKeyConstraint(["tenant", "member"], ["members.tenant", "members.member"]),
    Index("ix_keys_tenant_member", "tenant", "member"),
)

INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("invitation", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("tenant", Text, ForeignKey("tenants.tenant"), nullable=False),
    Column("department", Text),
    Column("role", Text, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("revoked_s", Float),
    CheckConstraint("uses_left >= 0", name="uses"),
)

# Who asked to be let in by an invitation, and what was decided.
APPLICATIONS = Table(
    "applications",
    METADATA,
    Column("application", Text, primary_key=True),
    # Of the secret with which the applicant asks what was decided.
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("invitation", Text, ForeignKey("invitations.invitation"), nullable=False),
    Column("tenant", Text, ForeignKey("tenants.tenant"), nullable=False),
    Column("member", Text, nullable=False),
    Column("note", Text, nullable=False),
    # "waiting", "approved", "refused", "taken" (its key was handed out).
    Column("state", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("decided_s", Float),
    Column("decided_by", Text),
    Index("ix_applications_tenant_state", "tenant", "state"),
)

# Every change, in the order in which they were committed: writers of tenancy take turns. It is
# also what routers follow: a row says which record is to be read anew.
AUDIT = Table(
    "audit",
    METADATA,
    Column("number", SERIAL, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    # Who did it: "tenant/member (key)".
    Column("actor", Text, nullable=False),
    # Such as "key.revoke".
    Column("action", Text, nullable=False),
    # Of what was changed; tenant is "" for what belongs to none.
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Index("ix_audit_tenant", "tenant", "number"),
)
