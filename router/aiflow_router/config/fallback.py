"""`fallback` of a route: who is asked when the model fails a call."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from aiflow_router.config.values import Mode, ModelName, Percent, Section, first_twice
from aiflow_router.routing import fallback as routing
from aiflow_router.routing.fallback import CONDITIONS, Condition

MAX_CANDIDATES = 8


class Fallback(Section):
    # Models, in the order in which they are asked.
    to: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=MAX_CANDIDATES)]
    # What sends a call on; None: all of them, deadline_share where a share is given.
    on: Annotated[tuple[Condition, ...], Field(min_length=1)] | None = None
    # Of the call's time, what all candidates but the last may use together.
    deadline_share: Percent | None = None
    mode: Mode = "enforce"

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """`[a, b]` is short for `{to: [a, b]}`, and YAML reads a bare `on` as true."""
        if isinstance(value, tuple | list):
            value = {"to": value}
        if not isinstance(value, dict):
            return value
        # Strict validation takes tuples; of JSON too, once it has passed through here.
        return {
            "on" if key is True else key: tuple(item) if isinstance(item, list) else item
            for key, item in value.items()
        }

    @model_validator(mode="after")
    def _effective(self) -> Fallback:
        for key, items in (("to", self.to), ("on", self.on or ())):
            if twice := first_twice(list(items)):
                raise ValueError(f'{key}: "{twice}" is there twice; the second has no effect')
        if self.deadline_share is not None and not 0 < self.deadline_share < 1:
            raise ValueError(
                "deadline_share must be above 0% and below 100%: both sides of it need some time"
            )
        listed = self.on is None or "deadline_share" in self.on
        if self.deadline_share is None and self.on is not None and listed:
            raise ValueError(
                "`on` lists deadline_share, but there is none: add one, such as "
                "`deadline_share: 60%`, or take it off the list"
            )
        if self.deadline_share is not None and not listed:
            raise ValueError(
                "deadline_share has no effect, for `on` does not list it: list it, or leave the "
                "share out"
            )
        return self

    def record(self) -> routing.Fallback | None:
        """None where it is off."""
        if self.mode == "off":
            return None
        given = frozenset(CONDITIONS) if self.on is None else frozenset(self.on)
        return routing.Fallback(
            to=self.to,
            on=given if self.deadline_share is not None else given - {"deadline_share"},
            deadline_share=self.deadline_share,
            shadow=self.mode == "shadow",
        )
