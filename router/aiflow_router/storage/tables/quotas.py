"""What of a quota is used, by the day or month it is for."""

from __future__ import annotations

from sqlalchemy import Column, Float, Table, Text

from aiflow_router.storage.tables.base import METADATA

QUOTAS = Table(
    "quotas",
    METADATA,
    # As `limits.asks` names it: the rule and whose it is.
    Column("bucket", Text, primary_key=True),
    # "2026-11-24" or "2026-11".
    Column("period", Text, primary_key=True),
    Column("used", Float, nullable=False),
)
