"""What calls by a route cost, in micro-credits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of a route.

    Attributes:
        call: of each call.
        units: of one of each unit beside that, such as {"tokens": 2000}.
        assume: how many of a unit a call is taken to use that does not say; who has none for a
            unit must say.
    """

    call: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    assume: Mapping[str, float] = field(default_factory=dict)

    def missing(self, units: Mapping[str, float]) -> Iterator[str]:
        """The units that a call must declare and does not."""
        return (unit for unit in self.units if unit not in units and unit not in self.assume)

    def most(self, declared: Mapping[str, float]) -> int:
        """What a call may cost at most; nothing that it must declare is missing."""
        return self.call + sum(
            math.ceil(each * declared.get(unit, self.assume.get(unit, 0.0)))
            for unit, each in self.units.items()
        )

    def said(self) -> str:
        """For a person: "1 credit a call; 0.002 credits for each of tokens, 100 assumed"."""
        parts = [f"{_credits(self.call)} a call"] if self.call else []
        for unit, each in self.units.items():
            assumed = self.assume.get(unit)
            else_ = "which a call must declare" if assumed is None else f"{assumed:.15g} assumed"
            parts.append(f"{_credits(each)} for each of {unit}, {else_}")
        return "; ".join(parts)

    def true(self, used: Mapping[str, float], declared: Mapping[str, float]) -> int:
        """What it did cost; a unit of which the backend told nothing as it was declared."""
        return self.most({**declared, **used})


def _credits(amount: int) -> str:
    text = f"{amount // 1_000_000}.{amount % 1_000_000:06}".rstrip("0").rstrip(".")
    return f"{text} credit" if text == "1" else f"{text} credits"
