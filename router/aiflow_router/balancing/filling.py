"""What `batch_aware` knows of a model's endpoints: how full each is, and how long answers take.

Only this router's own calls are seen. A call counts as one whatever number of items its tensors
carry, because the router does not decode them.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiflow_router.balancing.answer_time import counted_s
from aiflow_router.balancing.load import Load

# What was measured this long ago is not believed any more: a level that was too slow gets its
# chance again.
FORGET_S = 10.0
# Share of a new measurement in the averages.
GAIN = 1 / 16
# Of a normal distribution 99 % is below the mean and three times the mean deviation. Where answers
# come evenly between one and two executions, as a Triton's do, that is 2.25 executions.
DEVIATIONS = 3.0
# Of many endpoints so many are looked at for a call.
WINDOW = 4


@dataclass(slots=True, kw_only=True)
class Level:
    """Answer times of calls that found about as many calls ahead of them.

    Mean and mean deviation as TCP keeps them of its round trips (RFC 6298).

    Attributes:
        at_s: when it was last measured.
    """

    mean_s: float
    deviation_s: float = 0.0
    at_s: float

    def expected_s(self) -> float:
        return self.mean_s + DEVIATIONS * self.deviation_s

    def measured(self, took_s: float, now_s: float) -> None:
        off_s = took_s - self.mean_s
        self.mean_s += GAIN * off_s
        self.deviation_s += GAIN * (abs(off_s) - self.deviation_s)
        self.at_s = now_s


@dataclass(slots=True, kw_only=True)
class Fill:
    """One model's calls at one endpoint.

    Attributes:
        rank: decides between endpoints that are alike. It hangs on the names of model and address,
            so that all routers prefer the same endpoint, and models different ones.
        waiting: of each call without an answer, oldest first, how many were ahead of it. A batch
            is answered in about the order it came, so an answer is taken for the oldest one's.
        levels: by the bit length of the number ahead: 0, 1, 2 to 3, 4 to 7 ...
    """

    rank: int = 0
    waiting: deque[int] = field(default_factory=deque)
    levels: dict[int, Level] = field(default_factory=dict)

    def joined(self) -> None:
        self.waiting.append(len(self.waiting))

    def ahead(self, inflight: int) -> int:
        """How many calls of the model wait; never more than `inflight` to the endpoint in all.

        So should the end of a call ever not be told, it is forgotten when the endpoint is idle.
        """
        ahead = len(self.waiting)
        while ahead > inflight:
            self.waiting.popleft()
            ahead -= 1
        return ahead

    def expected_s(self, ahead: int, now_s: float) -> float:
        """When a call that finds so many ahead is expected to be answered.

        What was never measured is expected to take what fewer calls do, or it never would be.
        """
        for level in range(ahead.bit_length(), -1, -1):
            known = self.levels.get(level)
            if known is not None and now_s - known.at_s <= FORGET_S:
                return known.expected_s()
        return 0.0

    def answered(self, *, outcome: str, took_s: float, now_s: float) -> None:
        if not self.waiting:
            return
        level = self.waiting.popleft().bit_length()
        if outcome == "UNREACHABLE":  # It cools off, which says enough.
            return
        known = self.levels.get(level)
        if known is not None and now_s - known.at_s > FORGET_S:
            known = None
        usual_s = None if known is None else known.mean_s
        counted = counted_s(outcome=outcome, took_s=took_s, usual_s=usual_s)
        if counted is None:
            return
        if known is None:
            self.levels[level] = Level(mean_s=counted, at_s=now_s)
        else:
            known.measured(counted, now_s)


@dataclass(slots=True, kw_only=True)
class Filling:
    """One model's endpoints.

    Attributes:
        aim_s: answers shall come within this time.
        start: where among many endpoints is looked first.
        filled: calls that went to an endpoint because its batch had room.
        spread: calls that went to the least busy, as none had room within the aim.
    """

    model: str
    aim_s: float
    start: int = 0
    fills: dict[Load, Fill] = field(default_factory=dict)
    filled: int = 0
    spread: int = 0

    def to_fill(self, loads: Sequence[Load], now_s: float) -> Load | None:
        """The fullest of `loads` that has room within the aim; None where none has.

        Of equally full ones it is the least busy with other models, then the one of lowest rank. Of
        many a few are looked at, and the next few from when none of those has room.
        """
        count = len(loads)
        best: Load | None = None
        best_ahead = -1
        for step in range(min(count, WINDOW)):
            load = loads[(self.start + step) % count]
            room = load.rooms.get(self.model)
            if room is None:
                continue
            fill = self.fills.get(load) or self._fill(load)
            ahead = fill.ahead(load.inflight)
            if (
                best_ahead <= ahead < room
                and (best is None or ahead > best_ahead or self._before(load, best))
                and fill.expected_s(ahead, now_s) <= self.aim_s
            ):
                best, best_ahead = load, ahead
        if best is None and count > WINDOW:
            self.start += WINDOW
        return best

    def joined(self, load: Load) -> None:
        self._fill(load).joined()

    def answered(self, load: Load, *, outcome: str, took_s: float, now_s: float) -> None:
        if (fill := self.fills.get(load)) is not None:
            fill.answered(outcome=outcome, took_s=took_s, now_s=now_s)

    def expected_s(self, load: Load, now_s: float) -> float | None:
        """When a call that came now is expected to be answered; None where nothing was measured."""
        fill = self.fills.get(load)
        if fill is None:
            return None
        return fill.expected_s(min(len(fill.waiting), load.inflight), now_s) or None

    def _before(self, one: Load, other: Load) -> bool:
        ranks = self.fills[one].rank, self.fills[other].rank
        return (one.inflight, ranks[0]) < (other.inflight, ranks[1])

    def _fill(self, load: Load) -> Fill:
        fill = self.fills.get(load)
        if fill is None:
            rank = zlib.crc32(f"{self.model}@{load.endpoint.address}".encode())
            fill = self.fills[load] = Fill(rank=rank)
        return fill
