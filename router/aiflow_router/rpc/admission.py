"""Where a call is let in, or not, by the limits; and where it is settled once it has ended.

Asked once a call, as soon as it is known what is asked for. A fallback, a retry, a hedge and a copy
are parts of the call that was let in.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from aiflow_router.forwarding.metadata import SESSION, UNITS
from aiflow_router.limits import units
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.exceeded import error_of
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.permit import Permit
from aiflow_router.limits.rule import Ask, Rule
from aiflow_router.limits.rules import Rules, asked
from aiflow_router.routing.policy import Policies
from aiflow_router.rpc.payment import Payments
from aiflow_router.rpc.visit import Context, Visit
from aiflow_router.rpc.waiting import Waiting
from aiflow_sdk import errors

Result = Literal["pass", "near", "over", "shadow"]
# Of what a bucket holds: with less left it is near its limit.
NEAR = 0.2
# Decisions that are counted together: one by one they cost three times as much.
COUNTED_AT = 128


class Admission:
    """Lives in one event loop.

    Attributes:
        limited: there are rules, or prices; where there are none nobody need ask.
        payments: what calls hold and pay.
    """

    def __init__(
        self,
        buckets: Buckets,
        rules: Sequence[Rule] = (),
        *,
        payments: Payments | None = None,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[str, float], None] = lambda _label, _waited_s: None,
    ) -> None:
        """Args: clock: the event loop's; waited: told of each that waited its label and seconds."""
        self.buckets = buckets
        self.waiting = Waiting(buckets, clock=clock, waited=waited, refused=self._sent_away)
        self._clock = clock
        self.rules = Rules(rules)
        self.payments = payments or Payments()
        self.limited = self.rules.some or self.payments.some
        self._counts: Counter[tuple[str, str]] = Counter()
        self._decided: list[Permit] = []  # Not counted yet.
        # Where the buckets are in this process there is nothing to wait for.
        self._decide = buckets.decide if isinstance(buckets, Memory) else None
        # Of this process among all that share buckets.
        self._process = secrets.token_hex(4)
        self._number = itertools.count(1)
        self._begin(self.rules)

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Decisions by rule and result, since the start."""
        self._count()
        return self._counts

    def swap(self, rules: Sequence[Rule], policies: Policies | None = None) -> None:
        """Lets new calls go by `rules`; those in flight are settled by the ones they had.

        `policies` have the prices.
        """
        self.payments.swap(policies or Policies())
        self.rules = self.rules.after(rules)
        self.waiting.lines.swap(self.rules.all)
        self._begin(self.rules)
        self.limited = self.rules.some or self.payments.some

    async def admit(
        self,
        visit: Visit,
        kind: Literal["model", "service"],
        name: str,
        context: Context,
        *,
        size_bytes: int,
    ) -> None:
        """Lets the call in and notes its `permit`; `size_bytes` is what has come of it so far.

        Last of all it holds what the call may cost: who is not let in asks no database.

        Raises RateLimitedError, BadInputError where it must say what it costs, what `Waiting.take`
        raises, and of calls that have a price what `Payments.hold` raises.
        """
        if self.rules.some:
            await self._pass(visit, kind, name, context, size_bytes)
        if self.payments.some and (tariff := self.payments.tariff(kind, name)) is not None:
            await self.payments.hold(visit, tariff, name, declared(visit))

    async def _pass(
        self,
        visit: Visit,
        kind: Literal["model", "service"],
        name: str,
        context: Context,
        size_bytes: int,
    ) -> None:
        """Takes what the rules ask for. Raises as `admit`."""
        holder, verdict = "", None
        while verdict is None:  # Again where the rules changed while it waited.
            matched = self.rules.matched(visit.caller, kind, name)
            asks = matched.asks
            if not asks:
                visit.permit = None
                return
            if matched.varies:
                asks = asked(
                    matched,
                    visit.caller,
                    name,
                    session=_first(visit, SESSION) if matched.by_session else "",
                    cost=_Costs(visit, size_bytes).of,
                )
            holder = holder or f"{self._process}.{next(self._number)}"
            if matched.waits:
                verdict = await self.waiting.take(visit, asks, context, holder=holder)
            elif self._decide is not None:
                verdict = self._decide(asks, holder)
            else:
                verdict = await self.buckets.take(asks, holder=holder)
        permit = visit.permit = Permit(
            asks=asks, holder=holder, verdict=verdict, settles=matched.settles
        )
        self._decided.append(permit)
        if len(self._decided) >= COUNTED_AT:
            self._count()
        if not verdict.granted:
            raise error_of(permit)

    def check_as_one(self, visit: Visit, asked_for: str, other: str) -> None:
        """Whether messages for another model may go with a stream that was let in for one.

        Raises BadInputError where that would pass limits or the price of the other model by.
        """
        let_in, its = (
            self.rules.matched(visit.caller, "model", name) for name in (asked_for, other)
        )
        what = "limits" if its is not let_in and its.asks != let_in.asks else ""
        if self.payments.tariff("model", other) != self.payments.tariff("model", asked_for):
            what = "a price"
        if what:
            raise errors.BadInputError(
                f'this stream was let in for "{asked_for}", and "{other}" has {what} of its own: '
                "open another stream for it",
                violations={"model_name": "has other terms than the model of the first message"},
            )

    def settle(self, visit: Visit) -> None:
        """Of a call that has a permit and has ended: gives back what it did not need."""
        permit = visit.permit
        if permit is None or not permit.verdict.granted:
            return
        if visit.code == "OK" and not permit.settles:
            return
        settled: list[Ask] = []
        costs: list[float] = []
        for ask in permit.charged():
            cost = _true_cost(visit, ask)
            if cost != ask.cost or ask.rule.kind == "concurrency":
                settled.append(ask)
                costs.append(cost)
        if settled:
            self.buckets.settle(settled, costs, holder=permit.holder)
            if len(self.waiting.lines):
                self.waiting.lines.settled(settled, costs, self._clock())

    def forgotten(self) -> int:
        """Buckets in use that this process had no room for."""
        return self.buckets.forgotten if isinstance(self.buckets, Memory) else 0

    def waits(self) -> Mapping[str, int]:
        """How many calls wait, by rule that lets them."""
        waiting = dict.fromkeys((rule.name for rule in self.rules.all if rule.wait), 0)
        return {**waiting, **self.waiting.lines.waiting()}

    def _sent_away(self, rule: Rule) -> None:
        self._counts[rule.name, "over"] += 1

    def _begin(self, rules: Rules) -> None:
        """Each result of each rule is there from the start, so that a rate can be taken of it."""
        for rule in rules.all:
            if rule.mode != "off":
                decided: tuple[Result, ...] = ("over",) if rule.mode == "enforce" else ("shadow",)
                for result in ("pass", "near", *decided):
                    self._counts[rule.name, result] += 0

    def _count(self) -> None:
        decided, self._decided = self._decided, []
        said: list[tuple[str, Result]] = []
        for permit in decided:
            granted = permit.verdict.granted
            for ask, standing in zip(permit.asks, permit.verdict.standings, strict=True):
                rule = ask.rule
                if standing.wait_s:
                    said.append((rule.name, "over" if rule.mode == "enforce" else "shadow"))
                elif granted:
                    near = standing.remaining < NEAR * rule.holds
                    said.append((rule.name, "near" if near else "pass"))
        self._counts.update(said)


class _Costs:
    """What one call costs, by rule; what it declares is read once, if a rule asks."""

    def __init__(self, visit: Visit, size_bytes: int) -> None:
        self._visit = visit
        self._size_bytes = size_bytes
        self._declared: Mapping[str, float] | None = None

    def of(self, rule: Rule) -> float:
        """Raises BadInputError."""
        if rule.unit == "bytes":
            return float(self._size_bytes)
        if self._declared is None:
            self._declared = declared(self._visit)
        cost = self._declared.get(rule.unit, rule.assume)
        if cost is not None:
            return cost
        if rule.mode == "shadow":
            return 0.0
        raise errors.BadInputError(
            f'the limit "{rule.name}" counts {rule.unit}, and this call does not say how many it '
            f"asks for: send metadata `{UNITS}: {rule.unit}=NUMBER`",
            violations={UNITS: f"names no {rule.unit}"},
        )


def declared(visit: Visit) -> Mapping[str, float]:
    """What the caller says that it asks for, by unit. Raises BadInputError."""
    text = _first(visit, UNITS)
    if not text:
        return units.NONE
    try:
        return units.read(text, units.DECLARABLE)
    except ValueError as error:
        raise errors.BadInputError(
            f"metadata `{UNITS}` cannot be read: {error}", violations={UNITS: str(error)}
        ) from None


def _first(visit: Visit, name: str) -> str:
    return next((str(value) for found, value in visit.head.onward if found == name), "")


def _true_cost(visit: Visit, ask: Ask) -> float:
    """What a call that has ended was worth in the unit of the rule."""
    answered = visit.code == "OK"
    if not answered and not visit.sent:
        return 0.0  # It never went anywhere.
    unit = ask.rule.unit
    if unit == "calls":
        return ask.cost
    if unit == "bytes":
        return float(visit.size_bytes)
    if visit.cache == "hit":
        return 0.0  # Nobody worked on it.
    # Who does not tell has used what was asked for.
    return visit.used.get(unit, ask.cost)
