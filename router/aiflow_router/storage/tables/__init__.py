"""The schema, one file a subject; `migrations/` brings a database to it."""

from __future__ import annotations

from aiflow_router.storage.tables import ledger, quotas, tenancy, usage
from aiflow_router.storage.tables.base import METADATA

__all__ = ["METADATA", "ledger", "quotas", "tenancy", "usage"]
