"""Buckets in a Redis that several routers share: one round trip decides all that a call asks.

The script `decide.lua` looks at all buckets and charges all or none, with Redis's clock. Rules
with a lease are spent here for a while (see `leases`); while Redis is away each rule goes by what
it says for that (see `away`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hiredis
import structlog

from aiflow_router.limits.buckets import Buckets, Standing, Verdict
from aiflow_router.limits.redis.away import Away, Seat
from aiflow_router.limits.redis.leases import Decided, Leases
from aiflow_router.limits.redis.link import Answered, AwayError, Link, Reply, Settings, Value
from aiflow_router.limits.rule import Ask

_log = structlog.get_logger(__name__)

# So often a router says that it lives, and for so long it and its places count after the last time.
BEAT_S = 2.0
ALIVE_S = 10.0
PLACE_S = 10.0
# Places that were left while Redis was away; older ones lapse by themselves.
MOST_LEFT = 10_000


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str

    @staticmethod
    def named(name: str) -> _Script:
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        return _Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - Redis's own name of it


_DECIDE = _Script.named("decide.lua")
_BEAT = _Script.named("beat.lua")


class RedisBuckets:
    """`Buckets` in Redis, and without it; `run` keeps the connection.

    Attributes:
        link: the connection.
        decided: verdicts by what decided.
        untold: settlements that Redis was not told, for it was away.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        prefix: str,
        local: Buckets,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Beside the settings.

        Args:
            settings: where Redis is.
            prefix: of all keys.
            local: has the shares while Redis is away.
            workers: routers that there are at least.
            clock: monotonic seconds.
            sleep: waits.
            draw: even in [0, 1).
        """
        self.link = Link(
            settings,
            greet=self._greet,
            clock=clock,
            sleep=sleep,
            draw=draw,
        )
        self.decided: Counter[str] = Counter()
        self.untold = 0
        self._sleep, self._draw = sleep, draw
        self._workers = workers
        # One slot of a cluster has all keys, so that one script may touch them.
        self._prefix = f"{{{prefix}}}"
        self._name = secrets.token_hex(8)
        self._alive_s = ALIVE_S
        self._mark = ""
        self._leases = Leases(clock, draw)
        self._away = Away(local)
        # Until Redis tells it its rank it takes the smallest share, as each worker does.
        self._away.seat = Seat(of=workers, rank=workers - 1)
        # Places that calls have now, and those they left while Redis could not be told.
        self._places: dict[tuple[str, str], None] = {}
        self._left: dict[tuple[str, str], Ask] = {}

    @property
    def state(self) -> str:
        return "redis" if self.link.up else "away"

    @property
    def routers(self) -> int:
        """Processes that share these buckets, as far as this one knows."""
        return self._away.seat.of

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.link.run())
            tasks.create_task(self._beats())

    async def leave(self) -> None:
        """Says that this router is no more; the shares of the others grow at once."""
        self._alive_s = 0.0  # Of a beat that is due now as well, or it would be among them again.
        if self.link.up:
            try:
                await self._beat()
            except AwayError:
                _log.warning("Redis went away before it was told that this router leaves")

    async def take(self, asks: Sequence[Ask], *, holder: str) -> Verdict:
        verdict = await self._take(asks, holder)
        self.decided[verdict.by] += 1
        return verdict

    async def _take(self, asks: Sequence[Ask], holder: str) -> Verdict:
        try:
            if not any(ask.rule.lease_s for ask in asks):
                return (await self._decide("take", asks, None, holder)).verdict
            return await self._leases.take(
                asks, lambda sent, wants: self._decide("take", sent, wants, holder)
            )
        except AwayError:
            pass  # Outside of the handler, so that nothing keeps the error.
        return await self._away.take(asks, holder=holder)

    async def look(self, asks: Sequence[Ask]) -> Verdict:
        try:
            return (await self._decide("look", self._leases.reduced(asks), None, "")).verdict
        except AwayError:
            pass
        return await self._away.look(asks)

    def settle(self, asks: Sequence[Ask], true: Sequence[float], *, holder: str) -> None:
        if self._away.settle(asks, true, holder=holder):
            return
        told = [
            (ask, cost)
            for ask, cost in zip(asks, true, strict=True)
            if ask.rule.kind == "concurrency"
            or (cost != ask.cost and not self._leases.settle(ask, cost))
        ]
        if told:
            self._tell(told, holder)

    def _tell(self, told: Sequence[tuple[Ask, float]], holder: str) -> None:
        """Settles in Redis, without waiting for it."""
        places = [ask for ask, _ in told if ask.rule.kind == "concurrency"]
        for ask in places:
            self._places.pop((self._bucket(ask), holder), None)

        keys = [self._key("mark"), *(self._bucket(ask) for ask, _ in told)]
        arguments = self._arguments("settle", holder, [(*pair, "") for pair in told])

        def missed() -> None:
            self.untold += 1
            self._leave_later(places, holder)

        def send(*script: Value) -> None:
            try:
                answer = self.link.ask(*script, len(keys), *keys, *arguments)
            except AwayError:
                missed()
            else:
                answer.add_done_callback(answered)

        def answered(done: asyncio.Future[Reply]) -> None:
            error = done.exception()
            if isinstance(error, hiredis.ReplyError) and _unknown(error):
                send("EVAL", _DECIDE.text)
            elif error is not None:
                missed()
                if isinstance(error, hiredis.ReplyError):
                    self._refused(error)

        send("EVALSHA", _DECIDE.sha)

    def _leave_later(self, places: Iterable[Ask], holder: str) -> None:
        """Once Redis answers again; else they would count until they lapse."""
        for ask in places:
            self._left[(self._bucket(ask), holder)] = ask
        while len(self._left) > MOST_LEFT:
            del self._left[next(iter(self._left))]

    async def _decide(
        self, op: str, asks: Sequence[Ask], wants: Sequence[float] | None, holder: str
    ) -> Decided:
        """Raises AwayError."""
        if not self.link.up:  # Also while the first things are said, which may take long.
            raise AwayError("closed", "Redis is away")
        keys = [self._key("mark"), *(self._bucket(ask) for ask in asks)]
        leases = wants or [0.0] * len(asks)
        arguments = self._arguments(
            op,
            holder,
            [(ask, ask.rule.mode, lease) for ask, lease in zip(asks, leases, strict=True)],
        )

        def orphaned(reply: Reply) -> None:
            """The call was cancelled meanwhile: what it took goes back."""
            if isinstance(reply, list) and op == "take":
                self._undo(asks, self._read(asks, reply), holder)

        try:
            reply = await self._script(_DECIDE, keys, arguments, orphaned=orphaned)
        except AwayError:
            # Nobody knows whether it was decided there.
            self._leave_later((ask for ask in asks if ask.rule.kind == "concurrency"), holder)
            raise
        decided = self._read(asks, reply)
        if op == "take" and decided.verdict.granted:
            for ask, standing in zip(asks, decided.verdict.standings, strict=True):
                if ask.rule.kind == "concurrency" and not standing.wait_s:
                    self._places[(self._bucket(ask), holder)] = None
        return decided

    def _undo(self, asks: Sequence[Ask], decided: Decided, holder: str) -> None:
        if not decided.verdict.granted:
            return
        charged = [
            (Ask(rule=ask.rule, bucket=ask.bucket, cost=ask.cost + leased), 0.0)
            for ask, standing, leased in zip(
                asks, decided.verdict.standings, decided.leased, strict=True
            )
            if not standing.wait_s
        ]
        if charged:
            self._tell(charged, holder)

    def _read(self, asks: Sequence[Ask], reply: Reply) -> Decided:
        mark, granted, *rest = reply
        if mark:
            self._known(mark.decode())
        numbers = [float(text) for text in rest]
        standings = tuple(
            Standing(remaining=numbers[at], wait_s=numbers[at + 1], reset_s=numbers[at + 2])
            for at in range(0, 4 * len(asks), 4)
        )
        return Decided(
            verdict=Verdict(granted=bool(granted), standings=standings, by="redis"),
            leased=tuple(numbers[3::4]),
        )

    def _known(self, mark: str) -> None:
        if mark == self._mark:
            return
        if self._mark and mark.endswith(" lost"):
            _log.error(
                "Redis lost its buckets, as after a restart without persistence: they begin empty, "
                "and quotas of this day and month begin anew"
            )
        self._mark = mark

    def _arguments(
        self, op: str, holder: str, asks: Iterable[tuple[Ask, Value, Value]]
    ) -> list[Value]:
        # Where there are others, half of the rest stays for them.
        most = 1.0 if self.routers == 1 else 0.5
        found: list[Value] = [op, holder, self._mark, PLACE_S, most]
        for ask, seventh, eighth in asks:
            rule = ask.rule
            found += (rule.kind, rule.amount, rule.period_s, rule.burst, ask.cost, seventh, eighth)
        return found

    async def _script(
        self,
        script: _Script,
        keys: Sequence[str],
        arguments: Sequence[Value],
        *,
        orphaned: Answered | None = None,
    ) -> Reply:
        """Raises AwayError."""
        command = (len(keys), *keys, *arguments)
        try:
            return await self._answer("EVALSHA", script.sha, *command, orphaned=orphaned)
        except hiredis.ReplyError as error:
            if not _unknown(error):
                self._refused(error)
                raise AwayError("refused", str(error)) from None
        try:
            return await self._answer("EVAL", script.text, *command, orphaned=orphaned)
        except hiredis.ReplyError as error:
            self._refused(error)
            raise AwayError("refused", str(error)) from None

    async def _answer(self, *command: Value, orphaned: Answered | None) -> Reply:
        future = self.link.ask(*command, orphaned=orphaned)
        try:
            return await future
        except asyncio.CancelledError:
            # Answered in the same turn in which the call was cancelled.
            if orphaned is not None and not future.cancelled() and future.exception() is None:
                orphaned(future.result())
            raise
        finally:
            del future  # It has the error, which has this frame.

    def _refused(self, error: hiredis.ReplyError) -> None:
        """Redis answers, but not this: it is full, or a replica, or does not allow it."""
        self.link.give_up(AwayError("refused", str(error)))

    async def _greet(self) -> None:
        """Brings the scripts, and says that this router lives, which needs all that calls need."""
        for script in (_DECIDE, _BEAT):
            await self.link.ask("SCRIPT", "LOAD", script.text)
        await self._look_at_settings()
        await self._beat()
        left, self._left = self._left, {}
        for (_, holder), ask in left.items():
            self._tell([(ask, 0.0)], holder)

    async def _look_at_settings(self) -> None:
        """Raises AwayError where Redis is of a kind that cannot be used."""
        try:
            info = (await self.link.ask("INFO")).decode(errors="replace")
        except hiredis.ReplyError:
            return  # Not allowed to this user; what does not work will be refused.
        told = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        if told.get("cluster_enabled") == "1":
            raise AwayError(
                "refused", "it is a node of a cluster, which is not supported: name a single Redis"
            )
        policy = told.get("maxmemory_policy", "noeviction")
        if told.get("maxmemory", "0") != "0" and policy != "noeviction":
            _log.warning(
                "Redis may drop buckets when its memory is full, and they would be full again: set "
                "maxmemory-policy to noeviction",
                policy=policy,
            )

    async def _beats(self) -> None:
        while True:
            await self._sleep(BEAT_S * (0.75 + self._draw() / 2))
            self._leases.sweep()
            if self.link.up:
                try:
                    await self._beat()
                except AwayError as error:
                    _log.debug("no beat", error=str(error))

    async def _beat(self) -> None:
        places = list(self._places)
        keys = [self._key("routers"), *(bucket for bucket, _ in places)]
        holders = [holder for _, holder in places]
        of, rank = await self._script(_BEAT, keys, [self._name, self._alive_s, PLACE_S, *holders])
        if self._alive_s:
            self._away.seat = Seat(of=max(of, self._workers), rank=rank)

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _bucket(self, ask: Ask) -> str:
        """With its kind, for a rule may become one of another kind under the same name."""
        rule = ask.rule
        return f"{self._prefix}:{rule.kind}:{rule.unit}:{ask.bucket}"


def _unknown(error: hiredis.ReplyError) -> bool:
    """Somebody emptied Redis's scripts; EVAL brings this one again."""
    return str(error).startswith("NOSCRIPT")
