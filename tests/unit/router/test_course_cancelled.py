"""Whether a call that is cancelled on its course counts as its candidate's failure."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest

from aiflow_router.rpc.chain import _Way


@pytest.mark.parametrize(
    ("allowed_s", "timeout_s", "cancelled_s", "counts"),
    [
        pytest.param(0.2, 5.0, 0.17, True, id="its time is up by its caller's clock"),
        pytest.param(0.02, 5.0, 0.015, True, id="it had little time, and that is up"),
        pytest.param(0.2, 5.0, 0.1, False, id="its caller gives it up"),
        pytest.param(0.04, 5.0, 0.01, False, id="it had little time, and is given up"),
        pytest.param(math.inf, 0.2, 0.2, True, id="its route's time is up"),
        pytest.param(math.inf, 0.2, 0.17, False, id="it is given up before its route's time is up"),
    ],
)
def test_rows(allowed_s: float, timeout_s: float, cancelled_s: float, *, counts: bool) -> None:
    now_s = 0.0
    judged: list[bool] = []
    sides = SimpleNamespace(
        split=SimpleNamespace(shadow=False), ended=lambda *_, well, **__: judged.append(well)
    )
    course: Any = SimpleNamespace(
        chains={"a": ("a",)}, retry=SimpleNamespace(attempts=1), fallback=None, sides=sides
    )
    front: Any = SimpleNamespace(
        sender=SimpleNamespace(clock=lambda: now_s), table=SimpleNamespace(stamp="")
    )
    left_s = None if allowed_s == math.inf else allowed_s
    context: Any = SimpleNamespace(time_remaining=lambda: left_s)
    visit: Any = SimpleNamespace()
    way = _Way(front, visit, course, context, first="a", timeout_s=timeout_s)
    way.begins(judged=True)
    now_s = cancelled_s
    assert way.failed(asyncio.CancelledError()) is None
    assert judged == ([False] if counts else [])
