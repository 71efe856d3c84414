"""What was used, by day: added up by every router, each second."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Table, Text

from aiflow_router.storage.tables.base import METADATA

USAGE = Table(
    "usage",
    METADATA,
    # "2026-11-24", in UTC, when the call ended.
    Column("day", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    # "" for none, as of a key of a tenant as a whole.
    Column("department", Text, primary_key=True),
    Column("member", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    # Or the service.
    Column("model", Text, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("tokens", Float, nullable=False),
    Column("pixels", Float, nullable=False),
    Column("gpu_ms", Float, nullable=False),
    # Of requests, or of the first message of a stream.
    Column("bytes", BigInteger, nullable=False),
    # In micro-credits.
    Column("credits", BigInteger, nullable=False),
    Index("ix_usage_tenant_day", "tenant", "day"),
)

# Which of its batches a process wrote last, so that one whose commit was not answered is not added
# a second time.
USAGE_WRITERS = Table(
    "usage_writers",
    METADATA,
    Column("writer", Text, primary_key=True),
    Column("batch", BigInteger, nullable=False),
    Column("at_s", Float, nullable=False),
)
