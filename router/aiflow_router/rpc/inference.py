"""One inference on its way to one model: answered by that model's cache, by an equal call, or sent.

Of what is sent the model's shadow may get a copy. Cache and shadow are those of the model that is
called here, whatever model its caller asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiflow_router.caching.cache import Cache, Kept, key_of
from aiflow_router.caching.flight import Flight
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.fields import self_contained
from aiflow_router.forwarding.metadata import CACHE
from aiflow_router.forwarding.sender import outside_a_sequence
from aiflow_router.forwarding.unary import Answer
from aiflow_router.routing.table import GatedPlan
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.visit import Visit
from aiflow_sdk import errors

SKIP = "skip"
# Hashed in a thread, which costs some 60 us: here it would hold all other calls for 180 us.
LARGE_BYTES = 256 * 1024


async def infer(front: Front, visit: Visit, call: Call, plan: GatedPlan, request: bytes) -> Answer:
    """The answer to `call`, which is by `plan`.

    Raises AioRpcError, AiflowError.
    """
    if (plan.cache is None and plan.shadow is None) or not self_contained(request):
        return await front.send(
            visit, call, request, may_repeat=outside_a_sequence, gate=plan.gates.unary
        )
    asking = _Asking(front=front, visit=visit, call=call, plan=plan, request=request)
    if plan.cache is None:
        return await asking.ask()
    size = len(request)
    hashed = asking.key() if size <= LARGE_BYTES else await asyncio.to_thread(asking.key)
    cached = _Cached(asking=asking, cache=plan.cache, key=hashed)
    if plan.cache.rule.shadow:
        return await cached.watched()
    if asking.skips():
        return await cached.renewed()
    return await cached.found_or_asked()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    front: Front
    visit: Visit
    call: Call
    plan: GatedPlan
    request: bytes

    def key(self) -> bytes:
        return key_of(
            self.request,
            tenant=self.visit.tenant,
            model=self.plan.name,
            version=self.plan.version,
        )

    def skips(self) -> bool:
        return (CACHE, SKIP) in self.call.onward

    async def send(self) -> Answer:
        return await self.front.send(
            self.visit,
            self.call,
            self.request,
            may_repeat=outside_a_sequence,
            gate=self.plan.gates.unary,
        )

    async def ask(self) -> Answer:
        """Sends it; a copy of it may go to another model."""
        rule = self.plan.shadow
        if rule is None:
            return await self.send()
        return await self.front.shadows.beside(self.send(), self.call, rule, self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    """A call whose answer may be kept under `key`."""

    asking: _Asking
    cache: Cache
    key: bytes

    async def watched(self) -> Answer:
        """Asks whatever the cache would have said, which is counted."""
        known = not self.asking.skips() and self.cache.store.get(self.key) is not None
        skips = self.asking.skips()
        self.cache.counts["skip" if skips else "would_hit" if known else "miss"] += 1
        answer = await self.asking.ask()
        if not known:
            self._keep(answer)
        return answer

    async def renewed(self) -> Answer:
        """Asks, and keeps the answer instead of an older one."""
        self.cache.counts["skip"] += 1
        self.asking.visit.cache = "skip"
        answer = await self.asking.ask()
        self._keep(answer)
        return answer

    async def found_or_asked(self) -> Answer:
        found = self.cache.store.get(self.key)
        if found is not None and found[0] is not None:
            self.cache.counts["hit"] += 1
            return self._again(found[0], age_s=found[1])
        flight = self.cache.flights.get(self.key)
        if flight is None:
            return await self._led(self.cache.flights.lead(self.key))
        got = await self._waited(flight)
        if isinstance(got, Kept):
            return self._again(got, age_s=0.0)
        if got is not None:
            return await self._led(got)
        self._missed()
        answer = await self.asking.ask()
        self._keep(answer)
        return answer

    async def _waited(self, flight: Flight[Kept]) -> Kept | Flight[Kept] | None:
        """As `Flight.joined`."""
        visit, call, clock = self.asking.visit, self.asking.call, self.asking.front.sender.clock
        since_s = clock()
        visit.call = None  # For now it is nowhere: if it ends here, the router says so.
        asks = False
        try:
            got = await flight.joined(deadline_s=call.deadline_s)
            asks = not isinstance(got, Kept)
        except TimeoutError:
            raise errors.DeadlineExceededError(
                f'an equal call to "{call.plan.name}" is under way and was not answered before the '
                "deadline of this one: allow a longer deadline, or raise the `timeout` of its "
                "route in the router's aiflow.yaml",
                metadata={"model": call.plan.name},
            ) from None
        finally:
            visit.queued_s += clock() - since_s
            if not asks:
                self.cache.counts["joined"] += 1
        if asks:
            visit.call = call
        return got

    async def _led(self, flight: Flight[Kept]) -> Answer:
        """Asks for all who wait."""
        self._missed()
        try:
            answer = await self.asking.ask()
            kept = self._keep(answer)
        except BaseException as error:
            # One that had too little time says nothing of those that have more.
            late = self.asking.front.sender.clock() >= self.asking.call.deadline_s
            flight.failed(counts=isinstance(error, Exception) and not late)
            raise
        flight.landed(kept)
        return answer

    def _missed(self) -> None:
        self.cache.counts["miss"] += 1
        self.asking.visit.cache = "miss"

    def _keep(self, answer: Answer) -> Kept:
        kept = Kept(answer=answer, served_by=self.asking.call.served_by())
        self.cache.keep(self.key, kept)
        return kept

    def _again(self, kept: Kept, *, age_s: float) -> Answer:
        """The answer that another call got."""
        visit = self.asking.visit
        visit.call = None  # This one went nowhere.
        visit.cache, visit.kept_by, visit.kept_s = "hit", kept.served_by, age_s
        return kept.answer
