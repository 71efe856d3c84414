"""Each test runs over every registry."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from contract.registrar.kit import AtConsul, AtRouter, Registry
from fixtures.consul import StartAgent


@pytest.fixture(params=["router", "consul"])
async def registry(
    request: pytest.FixtureRequest, start_consul: StartAgent
) -> AsyncIterator[Registry]:
    """Running, and of the test's own."""
    found: Registry
    if request.param == "router":
        found = AtRouter()
        await found.start()
    else:
        found = AtConsul(start_consul())
    yield found
    await found.stop()
