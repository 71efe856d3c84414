"""What calls by a route cost, as aiflow.yaml has it: in credits, with up to 6 decimals."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from aiflow_router.accounts.account import MOST, micro, written
from aiflow_router.config.values import Section, at
from aiflow_router.routing import price


def _credits(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('must be a number of credits, such as 2 or 0.002 or "0.002"')  # noqa: TRY004 - pydantic asks for it
    found = micro(value)
    if found < 0:
        raise ValueError("must be 0 or more: no call brings its caller credits")
    if found > MOST:
        raise ValueError(f"is more than {written(MOST)} credits, which nobody can have at once")
    return found


def _plain(value: int) -> int | str:
    """Exact, and read again as it is."""
    text = written(value)
    return int(text) if text.isdecimal() else text


# In micro-credits.
Credits = Annotated[int, BeforeValidator(_credits), PlainSerializer(_plain, when_used="json")]


class Assume(Section):
    """What a call is taken to use of a unit that it does not declare; None: it must declare it."""

    tokens: Annotated[float, Field(ge=0, le=1e12)] | None = None
    pixels: Annotated[float, Field(ge=0, le=1e12)] | None = None
    gpu_ms: Annotated[float, Field(ge=0, le=1e12)] | None = None


class Price(Section):
    # Of each call.
    call: Credits = 0
    # Of each token, pixel and millisecond of a GPU beside that.
    tokens: Credits = 0
    pixels: Credits = 0
    gpu_ms: Credits = 0
    assume: Assume = Assume()

    @model_validator(mode="after")
    def _something(self) -> Price:
        if not any((self.call, self.tokens, self.pixels, self.gpu_ms)):
            raise ValueError("costs nothing: say a price, or leave `price` out")
        for unit in ("tokens", "pixels", "gpu_ms"):
            if getattr(self.assume, unit) is not None and not getattr(self, unit):
                raise at("assume", unit, why=f"has no effect, for {unit} cost nothing here")
        if self.gpu_ms and self.assume.gpu_ms is None:
            raise at(
                "gpu_ms",
                why="is known only when a call has ended, and what it may cost is held before: "
                "say with `assume: {gpu_ms: ...}` how many a call takes at most",
            )
        return self

    def record(self) -> price.Price:
        names = {"tokens": "tokens", "pixels": "pixels", "gpu_ms": "gpu-ms"}
        return price.Price(
            call=self.call,
            units={name: each for field, name in names.items() if (each := getattr(self, field))},
            assume={names[field]: assumed for field, assumed in self.assume if assumed is not None},
        )


def of_a_call(value: object) -> object:
    """A number alone is the price of a call."""
    return value if value is None or isinstance(value, dict | Price) else {"call": value}
