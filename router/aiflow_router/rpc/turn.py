"""A call that finds no room at its gate: it waits here for its turn, or is told why it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio

from aiflow_router.forwarding.deadline import cut_off, passed
from aiflow_router.identity.caller import Caller
from aiflow_router.limits.concurrency import End
from aiflow_router.limits.gate import Gate, Refusal
from aiflow_router.limits.refusal import error_of, too_late
from aiflow_sdk import errors

# What a backend says when it has too much to do, in its own words.
_TOO_MUCH = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})


async def take_turn(
    gate: Gate,
    name: str,
    *,
    caller: Caller,
    priority: str,
    deadline_s: float,
    patience_s: float,
    clock: Callable[[], float],
) -> float:
    """Returns once the call is inside, with the seconds it waited.

    `deadline_s` is the call's, on the event loop's clock; nobody waits longer than `patience_s`,
    for a stream may have no deadline.

    Raises OverloadedError, DeadlineUnreachableError, DeadlineExceededError.
    """
    joined_s = clock()
    ticket = gate.join(
        tenant=caller.tenant,
        weight=caller.weight,
        priority=priority,
        deadline_s=deadline_s,
        now_s=joined_s,
    )
    if isinstance(ticket, Refusal):
        raise error_of(ticket, name)
    if ticket.entered:
        return 0.0
    woken = asyncio.get_running_loop().create_future()
    ticket.wake = lambda: None if woken.done() else woken.set_result(None)
    try:
        async with asyncio.timeout_at(min(deadline_s, joined_s + patience_s)):
            await woken
    except TimeoutError:
        now_s = clock()
        late = passed(deadline_s, now_s=now_s)
        gate.give_up(ticket, "DEADLINE_EXCEEDED" if late else "OVERLOADED", now_s)
        if late or ticket.refusal is None:
            raise too_late(name) from None
    except BaseException:
        now_s = clock()
        late = cut_off(deadline_s, since_s=joined_s, now_s=now_s)
        gate.give_up(ticket, "DEADLINE_EXCEEDED" if late else "CANCELLED", now_s)
        raise
    if ticket.refusal is not None:
        raise error_of(ticket.refusal, name)
    return clock() - joined_s


def how_it_ended(error: BaseException, *, deadline_s: float, now_s: float) -> End:
    """What a call that failed at the backend says about the backend's load."""
    if passed(deadline_s, now_s=now_s) or isinstance(error, errors.DeadlineExceededError):
        return End.TIMED_OUT
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() in _TOO_MUCH:
            return End.REFUSED
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return End.TIMED_OUT
    return End.OTHER
