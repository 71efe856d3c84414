"""The ledger as calls and operators use it.

A call's credits are held before it goes anywhere, and settled before its answer is given: whoever
was answered has paid, and who was not has not. What could not be done because the database was away
is done when it is back; what a router leaves behind that dies is given back when it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts import rows
from aiflow_router.accounts.account import Who, written
from aiflow_router.accounts.alert import Alert
from aiflow_router.accounts.commits import Commits, UnwrittenError
from aiflow_router.accounts.operation import (
    Allocate,
    Done,
    Hold,
    Operation,
    Outcome,
    Refused,
    Release,
    Settle,
    TopUp,
)
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

# How long giving back is tried: by then it has expired anyway.
GIVE_BACK_WITHIN_S = 24 * 3600.0
# What an operator waits for a database that is away.
PATIENCE_S = 5.0
CLOSE_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a call holds."""

    who: Who
    request_id: str
    token: str
    payer: str
    amount: int


class Ledger:
    """Lives in one event loop; works while `run` does.

    Attributes:
        counts: operations by what they are and what came of them.
        over: micro-credits that calls cost more than they had said, which nobody paid.
        alerts: that were told, by tenant and level.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        clock: Callable[[], float] = time.time,
        token: Callable[[], str] = lambda: f"{random.getrandbits(64):016x}",
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._token = token
        self.commits = Commits(self._write)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.alerts: Counter[tuple[str, str]] = Counter()
        self.over = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        await self.commits.run()

    async def close(self) -> None:
        """Writes what is left, where the database lets it; to be called while `run` runs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self.commits.idle()
        if left := self.commits.waiting:
            _log.error("credits could not be given back; they will expire", operations=left)

    async def hold(self, who: Who, request_id: str, amount: int, *, for_s: float) -> Taken:
        """Sets `amount` aside for a call that ends within `for_s`.

        Raises RateLimitedError (QUOTA_EXCEEDED), RefusedError (DUPLICATE_REQUEST), and
        UnavailableError where the database is away.
        """
        wanted = Hold(
            who=who,
            request_id=request_id,
            token=self._token(),
            amount=amount,
            expires_s=self._clock() + for_s,
        )
        try:
            outcome = await self.commits.ask(wanted)
        except UnwrittenError:
            self._give_back(who, request_id, wanted.token)
            raise _away() from None
        except BaseException:
            self._give_back(who, request_id, wanted.token)
            raise
        if isinstance(outcome, Refused):
            raise _refusal(wanted, outcome)
        return Taken(
            who=who,
            request_id=request_id,
            token=wanted.token,
            payer=outcome.payer,
            amount=amount,
        )

    async def settle(self, taken: Taken, amount: int, *, patience_s: float) -> int:
        """Takes `amount` of what is held, at most all; what it took.

        Raises UnavailableError where that could not be written in `patience_s`: then it is given
        back as soon as it can be, whether or not it was taken.
        """
        wanted = Settle(
            who=taken.who, request_id=taken.request_id, token=taken.token, amount=amount
        )
        try:
            outcome = await self.commits.ask(wanted, patience_s=patience_s)
        except UnwrittenError:
            self._give_back(taken.who, taken.request_id, taken.token, refund=True)
            raise _away() from None
        except BaseException:
            self._give_back(taken.who, taken.request_id, taken.token, refund=True)
            raise
        if isinstance(outcome, Refused):
            raise errors.UnavailableError(
                f'the credits for request "{taken.request_id}" are not held any more, for it took '
                "too long and another call has its id by now: send each call under an id of its "
                "own",
                reason="HOLD_LOST",
            )
        self.over += max(0, amount - taken.amount)
        return outcome.amount

    def settle_later(self, taken: Taken, amount: int) -> None:
        """Takes `amount` as `settle` does, a little later; does not fail."""
        wanted = Settle(
            who=taken.who, request_id=taken.request_id, token=taken.token, amount=amount
        )
        self._unheard(self.commits.ask(wanted, patience_s=GIVE_BACK_WITHIN_S))

    def release(self, taken: Taken) -> None:
        """Gives all of it back, a little later; does not fail."""
        self._give_back(taken.who, taken.request_id, taken.token)

    async def top_up(
        self, tenant: str, amount: int, *, actor: str, note: str, reference: str
    ) -> Done:
        """Gives a tenant's pool credits. Raises RefusedError, UnavailableError."""
        return await self._granted(
            TopUp(tenant=tenant, amount=amount, actor=actor, note=note, reference=reference)
        )

    async def allocate(
        self,
        tenant: str,
        amount: int,
        *,
        source: str,
        target: str,
        actor: str,
        note: str,
        reference: str,
    ) -> Done:
        """Moves credits from one account of a tenant to another. Raises as `top_up`."""
        return await self._granted(
            Allocate(
                tenant=tenant,
                source=source,
                target=target,
                amount=amount,
                actor=actor,
                note=note,
                reference=reference,
            )
        )

    async def expire(self, *, most: int = 500) -> int:
        """Gives back what nobody settled in time, `most` at once; how many there were.

        Raises SQLAlchemyError, OSError, UnwrittenError.
        """
        found = await rows.overdue(self._engine, now_s=self._clock(), most=most)
        await asyncio.gather(*(self.commits.ask(one) for one in found))
        return len(found)

    async def forget(self, *, older_s: float) -> int:
        """Forgets the ids of calls that ended so long ago. Raises SQLAlchemyError, OSError."""
        return await rows.forget(self._engine, before_s=self._clock() - older_s)

    async def _granted(self, wanted: TopUp | Allocate) -> Done:
        try:
            outcome = await self.commits.ask(wanted, patience_s=PATIENCE_S)
        except UnwrittenError:
            raise _away() from None
        if isinstance(outcome, Refused):
            raise _not_granted(wanted, outcome)
        return outcome

    def _give_back(self, who: Who, request_id: str, token: str, *, refund: bool = False) -> None:
        wanted = Release(who=who, request_id=request_id, token=token, refund=refund)
        self._unheard(self.commits.ask(wanted, patience_s=GIVE_BACK_WITHIN_S))

    def _unheard(self, done: asyncio.Future[Outcome]) -> None:
        """Nobody waits for it; what goes wrong is logged where it does."""
        done.add_done_callback(lambda one: None if one.cancelled() else one.exception())

    async def _write(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        book, outcomes = await rows.applied(self._engine, operations, now_s=self._clock())
        for operation, outcome in zip(operations, outcomes, strict=True):
            self.counts[_KINDS[type(operation)], _result(outcome)] += 1
        for alert in book.alerts:
            self._tell(alert)
        return outcomes

    def _tell(self, alert: Alert) -> None:
        self.alerts[alert.tenant, alert.level] += 1
        _log.warning(
            "credits are used up" if alert.level == "none" else "credits run out",
            account=alert.account,
            left=written(alert.balance),
            of=written(alert.full),
        )


_KINDS: Mapping[type, str] = {
    Hold: "hold",
    Settle: "settle",
    Release: "release",
    TopUp: "top_up",
    Allocate: "allocate",
}


def _result(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return outcome.why
    return "again" if outcome.again else "done"


def _away() -> errors.UnavailableError:
    return errors.UnavailableError(
        "the database that has the credits cannot be used just now, and this call costs some: try "
        "again shortly; the router's log says what is wrong",
        reason="LEDGER_UNAVAILABLE",
        retry_after_s=1.0,
    )


def _refusal(wanted: Hold, refused: Refused) -> errors.AiflowError:
    if refused.why == "duplicate":
        state = "is under way" if refused.subject == "held" else "was answered and paid"
        return errors.RefusedError(
            f'a call with the request id "{wanted.request_id}" {state} already: send another id '
            "with each new call, or none",
            code="ALREADY_EXISTS",
            reason="DUPLICATE_REQUEST",
            metadata={"request_id": wanted.request_id, "state": refused.subject},
        )
    balances = refused.balances or {}
    has = ", ".join(f"{name} has {written(left)}" for name, left in balances.items())
    who = wanted.who
    return errors.RateLimitedError(
        f"this call may cost {written(wanted.amount)} credits, and "
        + (has or f'tenant "{who.tenant}" was never given any for who calls')
        + f": ask an admin of the tenant for more (`aiflow credits list {who.tenant}`)",
        reason="QUOTA_EXCEEDED",
        metadata={"subject": refused.subject, "credits": written(wanted.amount)},
    )


def _not_granted(wanted: TopUp | Allocate, refused: Refused) -> errors.AiflowError:
    if refused.why == "other":
        return errors.RefusedError(
            f'the reference "{wanted.reference}" was used for another amount or account: send '
            "another one",
            code="ALREADY_EXISTS",
            reason="REFERENCE_USED",
            metadata={"reference": wanted.reference},
        )
    if refused.why == "much":
        return errors.BadInputError("that is more than the ledger can count")
    left = (refused.balances or {}).get(refused.subject, 0)
    return errors.RefusedError(
        f"{refused.subject} has {written(left)} credits, and {written(wanted.amount)} were to be "
        "moved: nothing was",
        reason="TOO_FEW_CREDITS",
        metadata={"account": refused.subject, "left": written(left)},
    )
