"""`split` of a route: which models share its calls."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aiflow_router.catalog.fields import model_problem
from aiflow_router.config.values import Mode, Name, Percent, Section, Times, at
from aiflow_router.routing import guard as guards
from aiflow_router.routing import split as routing

MAX_SIDES = 16
Weight = Annotated[int, Field(ge=0, le=1_000_000)]


class Guard(Section):
    # By how much more of the new side's calls may fail.
    errors: Percent | None = None
    # How many times the old side's its 95th percentile may be.
    latency: Times | None = None
    # The old side, with which the others are compared; None: the route's own model.
    against: Name | None = None
    # Calls that both sides must have had.
    after: Annotated[int, Field(ge=10, le=1000)] = 50
    mode: Literal["enforce", "shadow"] = "enforce"

    @model_validator(mode="after")
    def _looks(self) -> Guard:
        if self.errors is None and self.latency is None:
            raise ValueError(
                "the guard looks at nothing: give `errors` (such as 2%), `latency` (such as 1.5x) "
                "or both"
            )
        return self

    def record(self) -> guards.Guard:
        return guards.Guard(
            errors=self.errors,
            latency=self.latency,
            after=self.after,
            shadow=self.mode == "shadow",
        )


class Split(Section):
    # By model.
    weights: Annotated[dict[Name, Weight], Field(min_length=1, max_length=MAX_SIDES)]
    # Whose calls stay together.
    by: Literal["request", "tenant", "session"] = "request"
    guard: Guard | None = None
    mode: Mode = "enforce"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`split: {a: 90, b: 10}` is short for `split: {weights: {a: 90, b: 10}}`."""
        if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
            return value
        return {"weights": value}

    @model_validator(mode="after")
    def _effective(self) -> Split:
        for name in self.weights:
            if problem := model_problem(name):
                raise at("weights", name, why=f"no endpoint can ever serve it: {problem}")
        if not sum(self.weights.values()):
            raise ValueError("weights: all are 0, so no call could be sent anywhere")
        if self.guard is None:
            return self
        if self.mode != "enforce":
            raise ValueError(
                f"guard has nothing to compare while the split's mode is {self.mode}: leave it out"
            )
        return self

    def check(self, model: str) -> None:
        """Raises ValueError for what does not go with a route of `model`."""
        if tuple(self.weights) == (model,):
            raise ValueError(f'split gives "{model}" all calls, as without it: leave it out')
        if self.guard is None:
            return
        old = self.old(model)
        if self.guard.against is None and model not in self.weights:
            raise ValueError(
                f'split.guard compares with the old side, which "{model}" is not: name it with '
                f"`against`, one of {', '.join(self.weights)}"
            )
        if old not in self.weights:
            nearest = difflib.get_close_matches(old, self.weights, n=1)
            hint = (
                f"did you mean `{nearest[0]}`?"
                if nearest
                else "its sides are " + ", ".join(self.weights)
            )
            raise ValueError(f'split.guard.against: "{old}" is no side of this split; {hint}')
        if not self.weights[old]:
            raise ValueError(
                f'split.guard compares with "{old}", which gets no calls: leave the guard out, or '
                "give it a weight"
            )
        if not any(weight for name, weight in self.weights.items() if name != old):
            raise ValueError(f'split.guard has nothing to stop: nothing but "{old}" gets calls')

    def old(self, model: str) -> str:
        """The side that was there before, by what is known of a route of `model`."""
        if self.guard is not None and self.guard.against is not None:
            return self.guard.against
        return model if model in self.weights else min(self.weights)

    def record(self, model: str) -> routing.Split | None:
        """For the route of `model`; None where it is off."""
        if self.mode == "off":
            return None
        return routing.Split(
            weights=self.weights,
            old=self.old(model),
            by=self.by,
            guard=None if self.guard is None else self.guard.record(),
            shadow=self.mode == "shadow",
        )
