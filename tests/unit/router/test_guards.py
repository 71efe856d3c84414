"""What a guard stops is written into the policy, as often as that takes."""

import asyncio
import json
from typing import Any

from aiflow_router.policy.guards import Guards
from aiflow_router.routing.guard import Stop
from aiflow_sdk import errors

STOP = Stop(reason="errors", why="7 % of its calls fail")


class Desk:
    """A policy that others change too: `between` are failures that come before a write."""

    def __init__(self, weights: dict[str, int], *, between: int = 0) -> None:
        split = {"weights": weights, "guard": {"errors": "2%"}}
        self.document: dict[str, Any] = {"routes": [{"match": {"model": "m"}, "split": split}]}
        self.between = between
        self.by: list[str] = []
        self.written = asyncio.Event()

    async def current(self) -> tuple[str, str]:
        return "v1", json.dumps(self.document)

    async def replace(self, text: str, *, by: str, expected: str) -> None:
        assert expected == "v1"
        if self.between:
            self.between -= 1
            raise errors.RefusedError("somebody was faster", reason="POLICY_CHANGED")
        self.document = json.loads(text)
        self.by.append(by)
        self.written.set()


async def ran(desk: Desk, *sides: str) -> list[float]:
    """How long it waited between its tries, when all was written."""
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    guards = Guards(sleep=sleep)
    for side in sides:
        guards.stopped("m", side, STOP)
    task = asyncio.create_task(guards.run(desk))
    async with asyncio.timeout(5):
        await desk.written.wait()
    task.cancel()
    await asyncio.wait((task,))
    return waits


async def test_the_side_gets_no_calls_and_the_change_says_why() -> None:
    desk = Desk({"m": 90, "new": 10})
    assert await ran(desk, "new") == []
    assert desk.document["routes"][0]["split"] == {"weights": {"m": 90, "new": 0}}
    assert desk.by == ["the guard of m: new stopped, 7 % of its calls fail"]


async def test_it_is_tried_until_it_is_written() -> None:
    desk = Desk({"m": 90, "new": 10}, between=3)
    assert len(await ran(desk, "new")) == 3
    assert desk.document["routes"][0]["split"]["weights"]["new"] == 0


async def test_what_another_worker_wrote_already_is_written_once() -> None:
    desk = Desk({"m": 90, "x": 10, "y": 10})
    await ran(desk, "x", "x", "y")
    await asyncio.sleep(0)
    assert desk.document["routes"][0]["split"]["weights"]["x"] == 0
    assert sum("x stopped" in by for by in desk.by) == 1
