"""What an administrator may write: names, roles, patterns, times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from aiflow_router.identity.caller import Right, Role
from aiflow_router.identity.scope import scope
from aiflow_router.routing.nearest import nearest
from aiflow_sdk import errors

# Also labels of metrics, names of accounts, and parts of the names of buckets.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_PRINTED = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_NOTE = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]{0,1000}")
# Who calls without a key, and who has not said yet.
_TAKEN = frozenset({"anonymous", "unknown"})
# A microcosm and a giant: beyond these a share is a slip of the pen.
_WEIGHTS = (0.001, 1000.0)
DAY_S = 86_400.0
LONGEST_LIFE_S = 100 * 365 * DAY_S

_ROLES: tuple[Role, ...] = get_args(Role)
_RIGHTS: tuple[Right, ...] = get_args(Right)


class Fields:
    """Collects what is wrong, so that all of it is told at once."""

    def __init__(self) -> None:
        self._wrong: dict[str, str] = {}

    def check(self) -> None:
        """Raises BadInputError with every problem."""
        if self._wrong:
            listed = "; ".join(f"{field} {why}" for field, why in self._wrong.items())
            raise errors.BadInputError(listed, violations=self._wrong)

    def wrong(self, field: str, why: str) -> None:
        self._wrong.setdefault(field, why)

    def name(self, field: str, value: str) -> str:
        if not _NAME.fullmatch(value):
            self.wrong(
                field,
                "must be 1 to 64 letters, digits and ._@+-, beginning with a letter or digit",
            )
        return value

    def tenant(self, value: str) -> str:
        """The name of a new one."""
        if value in _TAKEN:
            self.wrong("tenant", f'must be another name: "{value}" is whoever has no key')
        return self.name("tenant", value)

    def title(self, field: str, value: str) -> str:
        """What a person calls something."""
        if not _PRINTED.fullmatch(value):
            self.wrong(field, "must be 1 to 128 characters that can be printed")
        return value

    def note(self, field: str, value: str) -> str:
        """What a person writes to another, who may read it in a terminal."""
        if not _NOTE.fullmatch(value):
            self.wrong(field, "must be 1000 characters at most that can be printed, or new lines")
        return value

    def weight(self, value: float) -> float:
        low, high = _WEIGHTS
        if not low <= value <= high:
            self.wrong("weight", f"must be {low:g} to {high:g}")
        return value

    def choice(self, field: str, value: str, choices: Iterable[str]) -> str:
        choices = tuple(choices)
        if value not in choices:
            self.wrong(field, f"must be one of {', '.join(choices)}{_meant(value, choices)}")
        return value

    def role(self, value: str) -> Role:
        self.choice("role", value, _ROLES)
        return next((role for role in _ROLES if role == value), "member")

    def may(self, values: Iterable[str]) -> frozenset[Right]:
        values = frozenset(values)
        for value in sorted(values):
            self.choice("may", value, _RIGHTS)
        return frozenset(right for right in _RIGHTS if right in values)

    def patterns(self, field: str, values: Iterable[str]) -> tuple[str, ...] | None:
        """None for none, which is all."""
        found = tuple(dict.fromkeys(values)) or None
        if found is not None and not all(_PRINTED.fullmatch(pattern) for pattern in found):
            self.wrong(field, "must be patterns of 1 to 128 characters that can be printed")
            return found
        try:
            scope(**{"models": None, "methods": None, field: found})
        except ValueError as error:
            self.wrong(field, str(error).removeprefix(f"{field}: "))
        return found

    def life(self, field: str, value_s: float, *, most_s: float = LONGEST_LIFE_S) -> float:
        if not 0 <= value_s <= most_s:
            self.wrong(field, f"must be 0 to {most_s / DAY_S:g} days")
        return value_s

    def count(self, field: str, value: int, *, most: int) -> int:
        if not 1 <= value <= most:
            self.wrong(field, f"must be 1 to {most}")
        return value


def not_found(kind: str, name: str, known: Iterable[str]) -> errors.NotFoundError:
    """With the nearest of the names that the caller may see."""
    hint = _meant(name, known)
    return errors.NotFoundError(
        f'there is no {kind} "{name[:128]}"{hint}', reason=f"{kind.upper()}_NOT_FOUND"
    )


def exists(kind: str, name: str) -> errors.AlreadyExistsError:
    return errors.AlreadyExistsError(
        f'there is a {kind} "{name}" already', reason=f"{kind.upper()}_EXISTS"
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """For the audit log: [before, after] of each field that differs."""
    return {
        field: [before[field], value] for field, value in after.items() if before[field] != value
    }


def _meant(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""
