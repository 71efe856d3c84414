"""A call that has a course: to the side that a split chooses, and on where that one fails it.

The deadline, the tries beyond each candidate's first and the retry budget are the whole call's.
Each candidate is called by its own plan else: its endpoints, gate, timeout and strategy. Nothing
goes on that was sent and may not be repeated, nor a stream that has reached a backend.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable

import grpc
import grpc.aio

from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.deadline import cut_off, passed, passed_on_s
from aiflow_router.forwarding.metadata import SESSION, Pair
from aiflow_router.forwarding.sender import MayRepeat
from aiflow_router.forwarding.stream import forward_stream
from aiflow_router.routing.course import Course
from aiflow_router.routing.fallback import condition, due_s
from aiflow_router.routing.name import in_a_sequence, renamed
from aiflow_router.routing.table import GatedPlan
from aiflow_router.rpc.detour import Detour
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.inference import infer
from aiflow_router.rpc.visit import Context, Visit
from aiflow_router.telemetry.trail import Note
from aiflow_sdk import errors, status

Failure = grpc.aio.AioRpcError | errors.AiflowError
# What of a stream's further message goes on; raises for one that must not.
Take = Callable[[bytes, Call], bytes]


async def forward_by(
    front: Front,
    visit: Visit,
    course: Course,
    request: bytes,
    context: Context,
    *,
    may_repeat: MayRepeat,
    inference: bool,
) -> bytes:
    """Passes a unary call on; the answer of the first candidate that gives one.

    What is no `inference` is a question about a model: it passes gates by and is not split.

    Raises AioRpcError, AiflowError.
    """
    first = _side(front, visit, course, request) if inference else _home(course)
    way = _Way(front, visit, course, context, first=first, timeout_s=course.timeout_s)
    while True:
        way.begins(judged=inference)
        try:
            plan = front.table.model(way.name)
            call = way.call(plan, bounded=way.shared and may_repeat(request))
            message = way.renamed(request)
            if inference:
                answer = await infer(front, visit, call, plan, message)
            else:
                answer = await front.send(visit, call, message, may_repeat=may_repeat, gate=None)
        except BaseException as error:
            if (failure := way.failed(error)) is None:
                raise
        else:
            if visit.call is not None:  # An answer from the cache says nothing of a candidate.
                way.answered()
            return await front.reply(visit, context, answer)
        if not way.goes_on(failure, unsent=not way.sent or may_repeat(request)):
            raise way.verdict(failure)


async def stream_by(
    front: Front, visit: Visit, course: Course, message: bytes, context: Context, *, take: Take
) -> Iterable[Pair]:
    """Passes a stream on, whose first `message` was read: all of it to one candidate.

    Raises AioRpcError, AiflowError.
    """
    first = _side(front, visit, course, message, stream=True)
    way = _Way(front, visit, course, context, first=first, timeout_s=math.inf)
    while True:
        way.begins(judged=True)
        try:
            plan = front.table.model(way.name)
            call = way.call(plan, bounded=False)
            async with front.place(visit, plan):
                trailing = await forward_stream(
                    front.sender,
                    call,
                    context,
                    first=way.renamed(message),
                    take=lambda further, call=call: take(further, call),  # type: ignore[misc]
                )
        except BaseException as error:
            if (failure := way.failed(error)) is None:
                raise
        else:
            way.answered(streamed=True)
            return trailing
        if not way.goes_on(failure, unsent=not way.sent):
            raise way.verdict(failure)


def _side(
    front: Front, visit: Visit, course: Course, message: bytes, *, stream: bool = False
) -> str:
    """The candidate that comes first."""
    sides = course.sides
    if sides is None:
        return course.name
    caller = ""
    by = sides.split.by
    if by == "tenant":
        caller = visit.tenant
    elif by == "session":
        caller = next((str(value) for name, value in visit.head.onward if name == SESSION), "")
    if not caller and not stream and in_a_sequence(message):
        side = sides.home()  # Steps of one sequence must not go here and there.
    else:
        side = sides.choose(caller)
    if sides.split.shadow:
        front.metrics.split_shadow(course.name, side)()
        return course.name
    front.metrics.split(course.name, side)()
    return side


def _home(course: Course) -> str:
    sides = course.sides
    return course.name if sides is None or sides.split.shadow else sides.home()


class _Way:
    """How far one call has come.

    Attributes:
        shared: candidates before the last have a share of the time only.
    """

    def __init__(
        self,
        front: Front,
        visit: Visit,
        course: Course,
        context: Context,
        *,
        first: str,
        timeout_s: float,
    ) -> None:
        self._front = front
        self._visit = visit
        self._course = course
        self._chain = course.chains[first]
        self._at = 0
        self._tries_left = course.retry.attempts - 1
        self._started_s = self._since_s = front.sender.clock()
        left_s = context.time_remaining()
        callers_s = math.inf if left_s is None else passed_on_s(left_s)
        self._callers_s = self._started_s + callers_s
        self._deadline_s = self._due_s = self._started_s + min(timeout_s, callers_s)
        self._call: Call | None = None
        self._judged = False
        self._first: Failure | None = None
        self._said: dict[str, str] = {}
        visit.policy = front.table.stamp
        fallback = course.fallback
        self.shared = (
            fallback is not None and not fallback.shadow and fallback.deadline_share is not None
        )

    @property
    def name(self) -> str:
        return self._chain[self._at]

    @property
    def sent(self) -> bool:
        """Whether the candidate may have begun to work on it."""
        return self._call is not None and self._call.sent

    def begins(self, *, judged: bool) -> None:
        """With the next candidate; `judged`: how the first one fares counts for the guard."""
        self._call = None
        self._since_s = self._front.sender.clock()
        self._due_s = self._deadline_s
        self._judged = judged and self._at == 0 and self._course.sides is not None

    def call(self, plan: GatedPlan, *, bounded: bool) -> Call:
        """The call to the candidate, whose time is `bounded` where another one could take over."""
        fallback = self._course.fallback
        self._due_s = self._deadline_s
        if self._deadline_s < math.inf:
            self._due_s = min(self._deadline_s, self._since_s + plan.timeout_s)
        if bounded and fallback is not None:
            due = due_s(
                now_s=self._since_s,
                started_s=self._started_s,
                deadline_s=self._deadline_s,
                share=fallback.deadline_share,
                followers=sum(map(self._front.table.serves, self._chain[self._at + 1 :])),
            )
            self._due_s = min(self._due_s, due)
        detour = self._visit.detour
        self._call = self._visit.call = Call(
            method=self._visit.method,
            plan=plan,
            onward=self._visit.head.onward,
            deadline_s=self._due_s,
            timed_here=self._due_s < self._callers_s,
            most=1 + min(self._tries_left, plan.retry.attempts - 1),
            paid_by=self._course.budget,
            because="" if detour is None else "fallback",
            notes=None if detour is None else detour.notes,
            begun=self._visit.line is not None,
        )
        return self._call

    def renamed(self, message: bytes) -> bytes:
        name = self.name
        return message if name == self._course.name else renamed(message, name)

    def answered(self, *, streamed: bool = False) -> None:
        took_s = None if streamed else self._front.sender.clock() - self._since_s
        self._judge(well=True, took_s=took_s)
        if not streamed:
            self._would_be_late()

    def failed(self, error: BaseException) -> Failure | None:
        """The failure where others may know a way on; None where the call itself has ended."""
        if not isinstance(error, grpc.aio.AioRpcError | errors.AiflowError):
            # gRPC cancels the handler of a call whose time is up.
            if isinstance(error, asyncio.CancelledError) and self._late():
                self._judge(well=False)
                self._would_be_late()
            return None
        code = _code(error)
        if code != "CANCELLED":
            self._judge(well=False)
        if code == "DEADLINE_EXCEEDED":
            self._would_be_late()
        error.__traceback__ = None  # Or it would keep this call's frames, and they keep it.
        return error

    def _late(self) -> bool:
        now_s = self._front.sender.clock()
        return passed(self._deadline_s, now_s=now_s) or cut_off(
            self._callers_s, since_s=self._started_s, now_s=now_s
        )

    def goes_on(self, failure: Failure, *, unsent: bool) -> bool:
        """Whether another candidate is to be asked; `unsent`: that may not be the second time."""
        fallback = self._course.fallback
        if fallback is None or not unsent or self._at + 1 == len(self._chain):
            return False
        now_s = self._front.sender.clock()
        known = _typed(failure)
        early = self._due_s < self._deadline_s and (
            known.code != "DEADLINE_EXCEEDED" or passed(self._due_s, now_s=now_s)
        )
        reason = fallback.met(known.code, known.reason, early=early)
        if reason is None or now_s >= self._deadline_s:
            return False
        from_, to = self.name, self._chain[self._at + 1]
        if fallback.shadow:
            self._front.metrics.fallback_shadow(from_, to, reason)()
            return False
        self._front.metrics.fallback(from_, to, reason)()
        self._remember(failure, known)
        if self._call is not None:
            self._tries_left = max(0, self._tries_left - max(0, self._call.attempts - 1))
        visit = self._visit
        if visit.detour is None:
            visit.detour = Detour()
        visit.detour.left(self._call, reason)
        note = Note(at_s=now_s, because=f"{from_} did not answer ({reason}): {to} is asked")
        visit.detour.notes.append(note)
        visit.call = None
        self._at += 1
        return True

    def verdict(self, failure: Failure) -> Failure:
        """What the caller is told.

        A failure that is none of a fallback's conditions is an answer. Where nobody gave one it is
        what the first candidate said, and beside it what the others did.
        """
        first, known = self._first, _typed(failure)
        if first is None or condition(known.code, known.reason, early=False) is None:
            return failure
        self._remember(failure, known)
        others = "; ".join(f"{name}: {said}" for name, said in self._said.items())
        told = _typed(first)
        told.metadata = {**told.metadata, "fallback": others}
        return told

    def _remember(self, failure: Failure, known: errors.AiflowError) -> None:
        if self._first is None:
            self._first = failure
        else:
            self._said[self.name] = f"{known.code}/{known.reason}"

    def _judge(self, *, well: bool, took_s: float | None = None) -> None:
        sides = self._course.sides
        if self._judged and sides is not None and not sides.split.shadow:
            sides.ended(self.name, well=well, took_s=took_s)

    def _would_be_late(self) -> None:
        """Counts a call that a share in shadow would not have waited for."""
        fallback = self._course.fallback
        if fallback is None or not fallback.shadow or fallback.deadline_share is None:
            return
        others = self._chain[1:]
        due = due_s(
            now_s=self._since_s,
            started_s=self._started_s,
            deadline_s=self._deadline_s,
            share=fallback.deadline_share,
            followers=sum(map(self._front.table.serves, others)),
        )
        if self._front.sender.clock() > due:
            self._front.metrics.fallback_shadow(self.name, others[0], "deadline_share")()


def _code(failure: Failure) -> str:
    return failure.code if isinstance(failure, errors.AiflowError) else failure.code().name


def _typed(failure: Failure) -> errors.AiflowError:
    """The failure as an error of ours; a backend's status, the same in words and code."""
    if isinstance(failure, errors.AiflowError):
        return failure
    return status.from_rpc_error(failure)
