"""aiflow.yaml: parsed once, checked as a whole, into one `config.Config`.

Whatever is wrong is an error that names file, line, column and the nearest key or value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from aiflow_router.config.config import Config, Listen
from aiflow_router.config.discovery import Consul, Embedded

DEFAULT_FILE = "aiflow.yaml"


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


def with_discovery(
    config: Config, source: Literal["embedded", "consul"] | None, consul: Mapping[str, str]
) -> Config:
    """`config` with its source of endpoints from flags or the environment. Raises ConfigError.

    Args:
        config: its listed endpoints stay.
        source: None leaves it as it is.
        consul: of discovery.consul; without effect where endpoints do not come from there.
    """
    discovery = config.discovery
    if source is None:
        source = "consul" if discovery.consul is not None else "embedded"
        if source == "embedded":
            return config
    changed: dict[str, Embedded | Consul | None]
    if source == "embedded":
        changed = {"embedded": discovery.embedded or Embedded(), "consul": None}
    else:
        said = {} if discovery.consul is None else discovery.consul.model_dump(mode="json")
        try:
            changed = {"embedded": None, "consul": Consul.model_validate({**said, **consul})}
        except ValidationError as failure:
            raise ConfigError(
                [
                    f"--consul: {error['msg'].removeprefix('Value error, ')}"
                    for error in failure.errors()
                ]
            ) from None
    return config.model_copy(update={"discovery": discovery.model_copy(update=changed)})


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain values, without secrets."""
    return config.model_dump(
        mode="json", exclude={"auth": {"keys": {"__all__": {"sha256"}}}}, exclude_none=True
    )


def printed(config: Config) -> str:
    return yaml.safe_dump(plain(config), sort_keys=False, default_flow_style=False).rstrip()
