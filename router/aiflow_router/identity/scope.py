"""What a key is for: models and methods by pattern, compiled before any call needs them.

`*` stands for anything, `?` for one character, `[abc]` for one of these; case counts.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from aiflow_sdk import errors

MAX_PATTERNS = 64
MAX_PATTERN_CHARACTERS = 256
# More of them match in exponential time.
MAX_STARS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """Names of which one pattern must match; `texts` as they were written."""

    texts: tuple[str, ...]
    regex: re.Pattern[str]

    def shown(self) -> str:
        return ", ".join(f'"{text}"' for text in self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Both hold where both are there.

    Attributes:
        models: that it may ask for; a call that is passed on and names no model is then refused,
            unless `methods` has it.
        methods: that it may call, by full name, whatever they are.
    """

    models: Patterns | None
    methods: Patterns | None

    def check_method(self, method: str, key: str) -> None:
        """Any call. Raises PermissionDeniedError."""
        if self.methods is not None and self.methods.regex.match(method) is None:
            raise errors.PermissionDeniedError(
                f"key {key} is not for the method {method}, only for {self.methods.shown()}: use "
                "another key, or have one made with this method in its scope",
                reason="METHOD_FORBIDDEN",
                metadata={"method": method, "key": key},
            )

    def check_model(self, model: str, key: str) -> None:
        """A call that names a model, which may be empty. Raises PermissionDeniedError."""
        if self.models is not None and self.models.regex.match(model) is None:
            raise errors.PermissionDeniedError(
                f'key {key} is not for the model "{model}", only for {self.models.shown()}: use '
                "another key, or have one made with this model in its scope",
                reason="MODEL_FORBIDDEN",
                metadata={"model": model, "key": key},
            )

    def check_service(self, service: str, key: str) -> None:
        """A call that is passed on by its service. Raises PermissionDeniedError."""
        if self.models is not None and self.methods is None:
            raise errors.PermissionDeniedError(
                f"key {key} is for models only ({self.models.shown()}) and {service} is called "
                "without one: use another key, or have one made with the service's methods in its "
                "scope",
                reason="METHOD_FORBIDDEN",
                metadata={"service": service, "key": key},
            )


def scope(models: Iterable[str] | None, methods: Iterable[str] | None) -> Scope | None:
    """None where there is no limit. Raises ValueError for patterns that can match nothing."""
    if models is None and methods is None:
        return None
    return Scope(
        models=None if models is None else _patterns("models", tuple(models)),
        methods=None if methods is None else _patterns("methods", tuple(methods)),
    )


def _patterns(what: str, texts: tuple[str, ...]) -> Patterns:
    if not texts:
        raise ValueError(f"{what}: is empty, so the key would be good for nothing: leave it out")
    if len(texts) > MAX_PATTERNS:
        raise ValueError(f"{what}: has {len(texts)} patterns, at most {MAX_PATTERNS} are possible")
    for text in texts:
        if problem := _problem(what, text):
            raise ValueError(f'{what}: the pattern "{text}" {problem}')
    regex = "|".join(f"(?:{fnmatch.translate(text)})" for text in texts)
    return Patterns(texts=texts, regex=re.compile(regex))


def _problem(what: str, text: str) -> str:
    if not text:
        return "is empty and matches nothing: leave it out"
    if len(text) > MAX_PATTERN_CHARACTERS:
        return f"is longer than {MAX_PATTERN_CHARACTERS} characters"
    if text.count("*") > MAX_STARS:
        return f"has more than {MAX_STARS} stars: write several patterns"
    if what == "methods" and text[0] not in "/*?[":
        return f'matches no method, for their full names begin with "/": write "/{text}"'
    return ""
