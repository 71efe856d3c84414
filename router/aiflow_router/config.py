"""aiflow.yaml: parsed once, checked as a whole, into one frozen `Config`.

A key exists here only when the router really does what it says. Any other is an error that names
file, line, column and the nearest key, so nothing a person wrote down is silently without effect.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from aiflow_router.catalog.endpoint import Endpoint, Protocol
from aiflow_router.catalog.fields import address_problem, violations
from aiflow_router.identity.keys import KeyRecord

DEFAULT_FILE = "aiflow.yaml"

_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration with its unit, such as "150ms", "2s" or "5m"')
    return float(match["number"]) * _UNIT_S[match["unit"]]


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than 0")
    return value


def _listen_address(value: str) -> str:
    if problem := address_problem(value, lowest_port=0):
        raise ValueError(problem)
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(
            "must be the SHA-256 of the key as 64 lower-case hex digits: "
            "`printf %s KEY | sha256sum` prints it"
        )
    return value


def _first_twice(items: list[Any]) -> Any:
    """The first item that is there twice; None when each is there once."""
    seen: set[Any] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(lambda value: f"{value:g}s", when_used="json"),
]
Timeout = Annotated[Duration, AfterValidator(_positive)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
# The strategies of balancing.pick.PICKS.
Balance = Literal["least_request", "peak_ewma", "round_robin", "session"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Listen(_Section):
    grpc: ListenAddress = "127.0.0.1:7600"
    http: ListenAddress = "127.0.0.1:7601"
    max_message_mb: Annotated[int, Field(ge=1, le=512)] = 64
    # After shutdown is announced and before new calls are refused: time for callers to notice.
    drain_grace: Duration = 1.0
    # How long calls in flight may take to end after that.
    drain_timeout: Duration = 30.0


class Embedded(_Section):
    pass


class StaticEndpoint(_Section):
    backend: str
    address: str
    protocol: Literal["oip", "grpc"]
    models: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    weight: Annotated[int, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _fields(self) -> StaticEndpoint:
        wrong = violations(
            backend=self.backend,
            address=self.address,
            protocol=Protocol[self.protocol.upper()],
            models=self.models,
            services=self.services,
            weight=self.weight,
        )
        if wrong:
            raise ValueError("; ".join(f"{field}: {why}" for field, why in wrong.items()))
        return self

    def endpoint(self) -> Endpoint:
        return Endpoint(
            backend=self.backend,
            address=self.address,
            protocol=Protocol[self.protocol.upper()],
            models=self.models,
            services=self.services,
            weight=self.weight,
        )


class Discovery(_Section):
    embedded: Embedded | None = None
    static: tuple[StaticEndpoint, ...] = ()

    @model_validator(mode="after")
    def _some(self) -> Discovery:
        if self.embedded is None and not self.static:
            raise ValueError("name a source of endpoints: `embedded: {}` or `static: [...]`")
        keys = [(item.backend, item.address) for item in self.static]
        if twice := _first_twice(keys):
            raise ValueError(f"endpoint {'@'.join(twice)} is listed twice")
        return self


class Key(_Section):
    name: Name
    tenant: Name
    sha256: Annotated[str, AfterValidator(_sha256)] = Field(repr=False)
    may: Annotated[tuple[Literal["call", "register"], ...], Field(min_length=1)] = ("call",)

    def record(self) -> KeyRecord:
        return KeyRecord(
            name=self.name, tenant=self.tenant, sha256=self.sha256, may=frozenset(self.may)
        )


class Auth(_Section):
    mode: Literal["required", "optional"] = "optional"
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _usable(self) -> Auth:
        if self.mode == "required" and not self.keys:
            raise ValueError("mode is `required` but there are no keys: nobody could call")
        if twice := _first_twice([key.name for key in self.keys]):
            raise ValueError(f'two keys are named "{twice}"')
        if _first_twice([key.sha256 for key in self.keys]):
            raise ValueError("two entries of keys are the same key")
        return self


class Match(_Section):
    model: Name | None = None
    service: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Match:
        if (self.model is None) == (self.service is None):
            raise ValueError("match either a `model` or a `service`")
        return self


class Retry(_Section):
    # Endpoints that are tried at most, the first included.
    attempts: Annotated[int, Field(ge=1, le=5)] = 2


class Route(_Section):
    match: Match
    timeout: Timeout = 15.0
    retry: Retry = Retry()
    balance: Balance = "least_request"


class Config(_Section):
    listen: Listen = Listen()
    discovery: Discovery = Discovery(embedded=Embedded())
    auth: Auth = Auth()
    routes: tuple[Route, ...] = ()

    @model_validator(mode="after")
    def _once(self) -> Config:
        matches = [(route.match.model, route.match.service) for route in self.routes]
        if twice := _first_twice(matches):
            kind, name = ("model", twice[0]) if twice[0] else ("service", twice[1])
            raise ValueError(f'routes: two routes match {kind} "{name}"; only one could apply')
        return self


class ConfigError(Exception):
    """The file is not usable; `problems` says why, one line each, with file, line and column."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path) -> Config:
    """Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    return parse(text, file=str(path))


def parse(text: str, *, file: str = DEFAULT_FILE) -> Config:
    """Raises ConfigError with every problem there is."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise ConfigError([f"{where}: {getattr(error, 'problem', None) or error}"]) from None
    if root is None:
        return Config()
    if not isinstance(value, dict):
        raise ConfigError([f"{file}:1:1: must be a mapping of sections such as `listen:`"])
    problems = [
        (mark, f"key `{key}` is there twice; only the last one would count")
        for key, mark in _twice(root)
    ]
    try:
        config = Config.model_validate(_tuples(value))
    except ValidationError as failure:
        problems += [_problem(root, error) for error in failure.errors()]
    if problems:
        problems.sort(key=lambda problem: (problem[0].line, problem[0].column))
        raise ConfigError(
            [f"{file}:{mark.line + 1}:{mark.column + 1}: {what}" for mark, what in problems]
        )
    return config


def _tuples(value: Any) -> Any:
    """Lists as tuples, which is what strict validation into frozen sections takes."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _problem(root: yaml.Node, error: Any) -> tuple[yaml.Mark, str]:
    path = tuple(error["loc"])
    mark = _mark(root, path)
    where = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        nearest = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"known here: {', '.join(known)}"
        return (
            mark,
            f"unknown key `{where}`: this version has no such setting; {hint}",
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "literal_error":
        nearest = difflib.get_close_matches(
            str(error["input"]), re.findall(r"'([^']*)'", message), n=1
        )
        if nearest:
            message += f"; did you mean `{nearest[0]}`?"
    return mark, f"{where}: {message}" if where else message


def _keys_at(path: tuple[str | int, ...]) -> list[str]:
    """The keys that are known in the section at `path`."""
    section: type[BaseModel] = Config
    for part in path:
        if isinstance(part, str):
            section = _sections(section)[part]
    return list(section.model_fields)


def _sections(section: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    return {
        name: inner
        for name, field in section.model_fields.items()
        for inner in _models_in(field.annotation)
    }


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _mark(node: yaml.Node, path: tuple[str | int, ...]) -> yaml.Mark:
    """Where the key or item at `path` stands; of a key that is missing, where its section does."""
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            mark, node = found[0][0].start_mark, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark


def _twice(node: yaml.Node) -> Iterator[tuple[str, yaml.Mark]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark
            seen.add(key.value)
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item)


def with_listen(config: Config, given: Mapping[str, str]) -> Config:
    """`config` with addresses from flags or the environment. Raises ConfigError."""
    try:
        checked = Listen.model_validate(dict(given))
    except ValidationError as failure:
        raise ConfigError(
            [
                f"--{error['loc'][0]}: {error['msg'].removeprefix('Value error, ')}"
                for error in failure.errors()
            ]
        ) from None
    listen = config.listen.model_copy(update={name: getattr(checked, name) for name in given})
    return config.model_copy(update={"listen": listen})


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain values, without secrets."""
    return config.model_dump(
        mode="json", exclude={"auth": {"keys": {"__all__": {"sha256"}}}}, exclude_none=True
    )


def printed(config: Config) -> str:
    return yaml.safe_dump(plain(config), sort_keys=False, default_flow_style=False).rstrip()
