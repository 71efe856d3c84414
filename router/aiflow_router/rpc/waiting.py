"""A call over a limit that lets it wait: it waits here for its turn, or is told why it does not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from aiflow_router.forwarding.deadline import cut_off, passed, passed_on_s
from aiflow_router.forwarding.metadata import PRIORITY
from aiflow_router.limits.buckets import Buckets, Verdict
from aiflow_router.limits.gate import Refusal
from aiflow_router.limits.line import Lines, Place, placed, waits_for
from aiflow_router.limits.permit import Permit
from aiflow_router.limits.refusal import over_deadline, over_limit
from aiflow_router.limits.rule import Ask, Rule
from aiflow_router.rpc.visit import Context, Visit, queued
from aiflow_sdk import errors

Asks = tuple[Ask, ...]


class Waiting:
    """Lives in one event loop.

    Args:
        clock: that of the event loop.
        waited: told the label and the seconds of each call that waited and was granted.
        refused: told the rule for which a call was sent away.
    """

    def __init__(
        self,
        buckets: Buckets,
        *,
        clock: Callable[[], float],
        waited: Callable[[str, float], None],
        refused: Callable[[Rule], None],
    ) -> None:
        self.lines = Lines()
        self._buckets = buckets
        self._clock = clock
        self._waited = waited
        self._refused = refused

    async def take(
        self, visit: Visit, asks: Asks, context: Context, *, holder: str
    ) -> Verdict | None:
        """As `Buckets.take`, but for that it waits where the call may wait for what it is short of.

        None where the rules changed meanwhile: then by these it is not to be asked any more.

        Raises OverloadedError, DeadlineUnreachableError, DeadlineExceededError.
        """
        ask = self.lines.behind(asks, self._clock()) if len(self.lines) else None
        if ask is None:
            verdict = await self._buckets.take(asks, holder=holder)
            if verdict.granted or (ask := waits_for(asks, verdict)) is None:
                return verdict
        else:
            # Others wait for it, so it is not for this one to take; but would it ever be let in?
            verdict = await self._buckets.look(asks)
            if not verdict.granted and waits_for(asks, verdict) is None:
                return verdict
        since_s = self._clock()
        left_s = context.time_remaining()
        place = placed(
            asks,
            ask,
            tenant=visit.caller.tenant,
            weight=visit.caller.weight,
            priority=next((str(of) for name, of in visit.head.onward if name == PRIORITY), ""),
            deadline_s=math.inf if left_s is None else since_s + passed_on_s(left_s),
            label=visit.label,
        )
        try:
            granted = await self._served(visit, place, verdict, context, holder=holder)
        except errors.AiflowError:
            self._refused(place.ask.rule)
            raise
        finally:
            visit.queued_s += self._clock() - since_s
        if granted is not None and granted.granted:
            self._waited(visit.label, self._clock() - since_s)
        return granted

    async def _served(
        self, visit: Visit, place: Place, verdict: Verdict, context: Context, *, holder: str
    ) -> Verdict | None:
        """What it is told in the end; None where it is stale."""
        woken = asyncio.Event()
        place.wake = woken.set
        try:
            first = visit.line is None
            self._join(visit, place, verdict, holder=holder)
            if first and visit.line is not None:
                # At once: this is for whoever waits.
                await context.send_initial_metadata(queued(visit.line))
            while await self._turn(place, woken):
                self.lines.tries(place)
                verdict = await self._buckets.take(place.asks, holder=holder)
                self.lines.tried(place, verdict, self._clock())
                if verdict.granted:
                    return verdict
                ask = waits_for(place.asks, verdict)
                if ask is None:
                    return verdict
                if place.waits and ask.bucket != place.ask.bucket:
                    self.lines.leave(place)
                    place.ask = ask
                    self._join(visit, place, verdict, holder=holder)
        except asyncio.CancelledError:
            if place.waits:
                late = cut_off(place.deadline_s, since_s=visit.started_s, now_s=self._clock())
                self.lines.leave(place, "DEADLINE_EXCEEDED" if late else "CANCELLED")
            raise
        finally:
            if place.waits:
                self.lines.leave(place)
        return None

    def _join(self, visit: Visit, place: Place, verdict: Verdict, *, holder: str) -> None:
        # Not granted: should it end here it has nothing to give back.
        said = Verdict(granted=False, standings=verdict.standings, by=verdict.by)
        visit.permit = Permit(asks=place.asks, holder=holder, verdict=said)
        standing = verdict.standings[place.asks.index(place.ask)]
        met = self.lines.join(place, standing, self._clock())
        if isinstance(met, Refusal):
            raise over_limit(met, place.ask)
        visit.line = met if visit.line is None else visit.line

    async def _turn(self, place: Place, woken: asyncio.Event) -> bool:
        """Returns when it is to ask, or with False when its rules are not in force any more."""
        while not place.stale:
            woken.clear()
            if place.refusal is not None:
                raise over_limit(place.refusal, place.ask)
            due_s = self.lines.due_s(place)
            if due_s <= self._clock():
                return True
            until_s = min(due_s, place.deadline_s)
            try:
                async with asyncio.timeout_at(until_s if until_s < math.inf else None):
                    await woken.wait()
            except TimeoutError:
                # Who was sent away in the same turn has left already, and is told why.
                if place.waits and passed(place.deadline_s, now_s=self._clock()):
                    self.lines.leave(place, "DEADLINE_EXCEEDED")
                    raise over_deadline(place.ask) from None
        return False
