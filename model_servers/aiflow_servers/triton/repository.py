"""The folder of models that one Triton serves, as its operator wants them."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aiflow_sdk.errors import ModelNotFoundError, RefusedError

_CONFIG = "config.pbtxt"


def models_in(repository: Path) -> list[str]:
    """Names of the models in a repository: the folders that hold a numbered version.

    Raises:
        RefusedError: there is no such folder, or no model in it.
    """
    if not repository.is_dir():
        raise RefusedError(
            f"{repository} is not a folder; name a model repository", reason="NO_REPOSITORY"
        )
    found = sorted(
        folder.name
        for folder in repository.iterdir()
        if folder.is_dir() and any(version.name.isdigit() for version in folder.iterdir())
    )
    if not found:
        raise RefusedError(
            f"{repository} holds no model; Triton expects NAME/1/ and NAME/{_CONFIG} in it",
            reason="NO_REPOSITORY",
        )
    return found


def choose(repository: Path, wanted: Sequence[str]) -> list[str]:
    """The models to serve: those `wanted`, or all.

    Raises:
        ModelNotFoundError: one is not in the repository; names the nearest.
    """
    there = models_in(repository)
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=3, cutoff=0.4) or there
            raise ModelNotFoundError(
                f"{repository} holds no model {name!r}; it has {', '.join(near)}",
                metadata={"model": name},
            )
    return list(dict.fromkeys(wanted)) or there


def without_batching(repository: Path, copy: Path) -> Path:
    """A copy of the repository in which no request waits for another, to measure what that costs.

    Triton's default scheduler hands every request to the model alone.
    """
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob(f"*/{_CONFIG}"):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.ClearField("dynamic_batching")
        path.write_text(text_format.MessageToString(config))
    return copy
