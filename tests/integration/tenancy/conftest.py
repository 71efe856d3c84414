"""Each test that asks for `desk` runs on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from integration.tenancy.office_kit import Desk

from aiflow_router.storage.database import opened


@pytest.fixture
async def desk(storage_url: str) -> AsyncIterator[Desk]:
    async with opened(storage_url) as engine:
        yield Desk(engine)
