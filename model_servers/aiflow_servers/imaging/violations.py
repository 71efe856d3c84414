"""What is wrong with a request, field by field."""

from __future__ import annotations

import math

from aiflow_sdk.errors import BadInputError


def bad(field: str, problem: str) -> BadInputError:
    """The error that says what is wrong with one field."""
    return BadInputError(f"{field}: {problem}", violations={field: problem})


class Violations:
    """Collects problems, so that a caller learns of all of them at once."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    def add(self, field: str, problem: str) -> None:
        self._problems.setdefault(field, problem)

    def check_range(self, field: str, value: float, low: float, high: float) -> None:
        # Rounded, for a float field holds 0.3 as 0.30000001.
        if not (math.isfinite(value) and low <= float(f"{value:.6g}") <= high):
            self.add(field, f"must be {low:g} to {high:g}, not {value:g}")

    def check_length(self, field: str, value: str, most: int) -> None:
        if len(value) > most:
            self.add(field, f"has {len(value)} characters; at most {most} are taken")

    def raise_any(self) -> None:
        if self._problems:
            said = "; ".join(f"{field}: {problem}" for field, problem in self._problems.items())
            raise BadInputError(said, violations=self._problems)
