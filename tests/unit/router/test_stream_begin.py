"""When a stream's metadata goes on: with the first message, by itself, or not at all."""

import asyncio
from typing import Any

import pytest

from aiflow_router.forwarding.stream import HEADERS_AFTER_S, _begin


class Sent:
    """What of a gRPC context is used; remembers what is sent."""

    def __init__(self) -> None:
        self.metadata: list[Any] = []

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.metadata.append(metadata)


@pytest.mark.parametrize(
    ("initial", "ends_after_s", "sent"),
    [
        pytest.param([], 0.0, [], id="the end comes a moment later: trailers only"),
        pytest.param([], 200 * HEADERS_AFTER_S, [()], id="nothing comes: by itself"),
        pytest.param([("k", "v")], 0.0, [(("k", "v"),)], id="it says something: at once"),
    ],
)
async def test_metadata(initial: Any, ends_after_s: float, sent: list[Any]) -> None:
    context: Any = Sent()
    reading: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(ends_after_s))
    await _begin(context, initial, reading)
    assert context.metadata == sent
    reading.cancel()
