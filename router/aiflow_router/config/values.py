"""The kinds of values in aiflow.yaml, and what all its sections have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from aiflow_router.catalog.fields import address_problem, model_problem, service_problem

_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration with its unit, such as "150ms", "2s" or "5m"')
    return float(match["number"]) * _UNIT_S[match["unit"]]


def written(value_s: float) -> str:
    """As `seconds` reads it, whatever its size."""
    return f"{value_s:.9f}".rstrip("0").rstrip(".") + "s"


def positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than 0")
    return value


def _share(value: object) -> float:
    match = re.fullmatch(r"(\d+(\.\d+)?)%", value) if isinstance(value, str) else None
    if match is None or not 0 <= float(match[1]) <= 100:
        raise ValueError('must be a share of 0% to 100%, such as "20%"')
    return float(match[1]) / 100


def _times(value: object) -> float:
    match = re.fullmatch(r"(\d+(\.\d+)?)x", value) if isinstance(value, str) else None
    if match is None or float(match[1]) < 1:
        raise ValueError('must be how many times as much, 1x or more, such as "1.5x"')
    return float(match[1])


def _listen_address(value: str) -> str:
    if problem := address_problem(value, lowest_port=0):
        raise ValueError(problem)
    return value


def _model(value: str) -> str:
    if problem := model_problem(value):
        raise ValueError(f"no endpoint can ever serve it: {problem}")
    return value


def _service(value: str) -> str:
    if problem := service_problem(value):
        raise ValueError(
            f"no endpoint can ever serve it: {problem}; match a model, or another service"
        )
    return value


def first_twice(items: list[Any]) -> Any:
    """The first item that is there twice; None when each is there once."""
    seen: set[Any] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    PlainSerializer(written, when_used="json"),
]
Timeout = Annotated[Duration, AfterValidator(positive)]
Percent = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(lambda value: f"{value * 100:g}%", when_used="json"),
]
Times = Annotated[
    float,
    BeforeValidator(_times),
    PlainSerializer(lambda value: f"{value:g}x", when_used="json"),
]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
ModelName = Annotated[Name, AfterValidator(_model)]
ServiceName = Annotated[Name, AfterValidator(_service)]
Mode = Annotated[Literal["enforce", "shadow", "off"], BeforeValidator(_off)]
Zone = Annotated[str, Field(max_length=128)]


def at(*path: str | int, why: str) -> ValidationError:
    """To be raised by a section about what is somewhere inside of it."""
    detail = InitErrorDetails(
        type=PydanticCustomError("value_error", "{why}", {"why": why}), loc=path, input=None
    )
    return ValidationError.from_exception_data("Section", [detail])


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def without_effect(self, switch: str) -> None:
        """For a section that is off by `switch`: raises where another key says anything.

        By value, for the printed configuration names every default and must be read again.
        """
        fields = type(self).model_fields
        if any(getattr(self, name) != fields[name].default for name in fields if name != switch):
            raise ValueError(f"`{switch}` is off, so nothing else here has an effect: leave it out")
