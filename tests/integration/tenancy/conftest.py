"""What the tests of one office have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from integration.tenancy.desk import Desk

from aiflow_router.storage.database import opened


@pytest.fixture
async def desk(storage_url: str) -> AsyncIterator[Desk]:
    async with opened(storage_url) as engine:
        yield Desk(engine)
