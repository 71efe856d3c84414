"""aiflow.yaml: parsed once, checked as a whole, into one `config.Config`.

Whatever is wrong is an error that names file, line, column and the nearest key or value.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from aiflow_router.config import limits, prices, routes
from aiflow_router.config.config import Config
from aiflow_router.config.discovery import Consul, Embedded
from aiflow_router.config.limits import Ground
from aiflow_router.config.listen import Listen
from aiflow_router.config.policy import PolicyDocument

DEFAULT_FILE = "aiflow.yaml"
# A document may come from afar. Some 50,000 routes are within these.
MAX_CHARACTERS = 8_000_000
MAX_VALUES = 1_000_000
MAX_DEPTH = 50

# Ten times as fast where PyYAML was built with libyaml, as its wheels are.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

S = TypeVar("S", Config, PolicyDocument)


class ConfigError(Exception):
    """The file is not usable; `problems` says why, one line each, with file, line and column."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path) -> Config:
    """Raises ConfigError."""
    return parse(read(path), file=str(path))


def read(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError([f"{path}: cannot be read: {why}"]) from None


def parse(text: str, *, file: str = DEFAULT_FILE) -> Config:
    """Raises ConfigError with every problem there is."""
    return _parsed(Config, text, file=file)


def parse_policy(
    text: str, *, file: str = "policy", running: Config | None = None
) -> PolicyDocument:
    """A document of what may change while the router runs. Raises ConfigError as `parse` does.

    `running` is what the router runs by; it is to be possible there. None for anywhere.
    """
    return _parsed(PolicyDocument, text, file=file, running=running)


def _parsed(kind: type[S], text: str, *, file: str, running: Config | None = None) -> S:
    root, value = _composed(text, file=file)
    if root is None:
        return kind()
    if not isinstance(value, dict):
        first = next(iter(kind.model_fields))
        raise ConfigError([f"{file}:1:1: must be a mapping of sections such as `{first}:`"])
    problems = [
        (mark, f"key `{key}` is there twice; only the last one would count")
        for key, mark in _twice(root, set())
    ]
    try:
        found = kind.model_validate(value)
    except ValidationError as failure:
        problems += [_problem(kind, root, error) for error in _own(failure.errors())]
    else:
        problems += [
            (_mark(root, problem.path), f"{_dotted(problem.path)}: {problem.why}")
            for problem in _between(found, found if isinstance(found, Config) else running)
        ]
        if not problems:
            return found
    problems.sort(key=lambda problem: (problem[0].line, problem[0].column))
    raise ConfigError(
        [f"{file}:{mark.line + 1}:{mark.column + 1}: {what}" for mark, what in problems]
    )


def _between(found: Config | PolicyDocument, running: Config | None) -> Iterator[routes.Problem]:
    """What is wrong between parts that are right by themselves, for a router that runs by that."""
    known = None if running is None else running.discovery
    servable = None if known is None else known.only_models()
    services = None if known is None else known.only_services()
    ground = Ground(redis=True, storage=True) if running is None else running.ground()
    yield from routes.check(found.routes, servable=servable, services=services)
    yield from limits.check(
        found.limits,
        ground=ground,
        servable=routes.askable(found.routes, servable),
        services=services,
    )
    yield from prices.check(found.routes, ground=ground)


def _composed(text: str, *, file: str) -> tuple[yaml.Node | None, Any]:
    """The document with its marks, and as plain values. Raises ConfigError."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError([f"{file}: has {len(text)} characters, more than {MAX_CHARACTERS}"])
    try:
        _check_depth(text, file=file)
        loader = _LOADER(text)
        try:
            root = loader.get_single_node()
            value = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
        return root, _tuples(value, itertools.count())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        why = getattr(error, "problem", None) or error
        if mark and text[mark.index : mark.index + 1] == "\t":
            why = "there is a tab here: YAML is indented with spaces"
        raise ConfigError([f"{where}: {why}"]) from None
    except _TooManyError:
        raise ConfigError(
            [f"{file}: has more than {MAX_VALUES} values, aliases unfolded"]
        ) from None


def _check_depth(text: str, *, file: str) -> None:
    """Raises ConfigError, and YAMLError: libyaml recurses in C, where the stack ends in a crash."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                where = f"{file}:{event.start_mark.line + 1}" if event.start_mark else file
                raise ConfigError([f"{where}: more than {MAX_DEPTH} levels are nested here"])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _TooManyError(Exception):
    """A few aliases of aliases can stand for billions of values."""


def _tuples(value: Any, seen: Iterator[int]) -> Any:
    """Lists as tuples, which is what strict validation into frozen sections takes."""
    if next(seen) > MAX_VALUES:
        raise _TooManyError
    if isinstance(value, dict):
        return {key: _tuples(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item, seen) for item in value)
    return value


def _dotted(path: routes.Path) -> str:
    return ".".join(str(part) for part in path)


def _own(errors: Sequence[Any]) -> Iterator[Any]:
    """Without those of lists that are too short only because what is in them is wrong."""
    inside = {tuple(error["loc"][:end]) for error in errors for end in range(len(error["loc"]))}
    return (e for e in errors if e["type"] != "too_short" or tuple(e["loc"]) not in inside)


def _problem(kind: type[BaseModel], root: yaml.Node, error: Any) -> tuple[yaml.Mark, str]:
    path = tuple(error["loc"])
    mark = _mark(root, path)
    where = _dotted(path)
    if error["type"] == "extra_forbidden":
        if kind is PolicyDocument and len(path) == 1 and path[0] in Config.model_fields:
            can = ", ".join(f"`{key}`" for key in kind.model_fields)
            return mark, f"`{where}` cannot change while the router runs; only {can} can"
        known = _keys_at(kind, path[:-1])
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


def _keys_at(kind: type[BaseModel], path: routes.Path) -> list[str]:
    """The keys that are known in the section at `path`."""
    section = kind
    for part in path:
        # Beside keys and positions a path names which of several forms was tried.
        section = _sections(section).get(str(part), section)
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


def _mark(node: yaml.Node, path: routes.Path) -> yaml.Mark:
    """Where the key or item at `path` stands; of a key that is missing, where its section does."""
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if found:
                mark, node = found[0][0].start_mark, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            mark = node.start_mark
    return mark


def _twice(node: yaml.Node, seen: set[int]) -> Iterator[tuple[str, yaml.Mark]]:
    if id(node) in seen:  # An alias.
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if key.value in keys:
                yield key.value, key.start_mark
            keys.add(key.value)
            yield from _twice(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, seen)


def differing(old: Config, new: Config) -> list[str]:
    """The keys, other than those of the policy, in which two configurations differ."""
    return [
        key
        for section in Config.model_fields
        if section not in PolicyDocument.model_fields
        for key in _differing(section, getattr(old, section), getattr(new, section))
    ]


def _differing(key: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, BaseModel) and type(old) is type(new):
        for name in type(old).model_fields:
            yield from _differing(f"{key}.{name}", getattr(old, name), getattr(new, name))
    elif old != new:
        yield key


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
    found = config.model_dump(
        mode="json", exclude={"auth": {"keys": {"__all__": {"sha256"}}}}, exclude_none=True
    )
    if config.storage is not None:
        found["storage"]["url"] = config.storage.shown()
    if config.redis is not None:
        found["redis"]["url"] = config.redis.shown()
    return found


def printed(config: Config) -> str:
    return as_yaml(plain(config))


def as_yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=False).rstrip()
