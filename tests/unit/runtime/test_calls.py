"""What is counted of a call that ends before its answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from aiflow_servers.runtime.calls import Calls
from aiflow_servers.runtime.metrics import Metrics


@pytest.mark.parametrize(
    ("left_s", "code"),
    [
        pytest.param(None, "CANCELLED", id="without a deadline"),
        pytest.param(5.0, "CANCELLED", id="long before its deadline"),
        pytest.param(0.02, "DEADLINE_EXCEEDED", id="where the caller's clock runs ahead"),
        pytest.param(0.0, "DEADLINE_EXCEEDED", id="at its deadline"),
    ],
)
async def test_a_call_that_is_taken_back_was_late_or_cancelled(
    left_s: float | None, code: str
) -> None:
    async def run(_: Any, __: Any) -> None:
        raise asyncio.CancelledError

    async def continuation(_: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(run)

    metrics = Metrics()
    calls = Calls(metrics=metrics, services=("a.B",), max_call_s=60)
    details: Any = SimpleNamespace(method="/a.B/C", invocation_metadata=())
    handler: Any = await calls.intercept_service(continuation, details)
    context = SimpleNamespace(time_remaining=lambda: left_s, add_done_callback=lambda _: None)
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(b"", context)
    assert f'code="{code}",method="C",service="a.B"}} 1.0' in metrics.page().decode()
