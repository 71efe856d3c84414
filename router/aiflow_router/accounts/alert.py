"""When people are told that credits run out: once at a tenth left, once at none.

Full is what the account had after it was last given some; being given some makes it new again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

LOW_SHARE = 10  # One of so many parts left.

Word = Literal["low", "none"]


class Level(IntEnum):
    """How much is left; a worse one is higher. As the table has it."""

    ENOUGH = 0
    LOW = 1
    NONE = 2

    @property
    def word(self) -> Word:
        """As the alert is called; not of ENOUGH."""
        return "none" if self is Level.NONE else "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """`balance` of `full` is left in the account; both in micro-credits."""

    at_s: float
    tenant: str
    account: str
    level: Word
    balance: int
    full: int


def level(balance: int, full: int, *, refused: bool = False) -> Level:
    """`refused`: a call could not be paid, however much is left."""
    if full <= 0:
        return Level.ENOUGH  # It never had anything to run out of.
    if balance <= 0 or refused:
        return Level.NONE
    return Level.LOW if balance * LOW_SHARE <= full else Level.ENOUGH
