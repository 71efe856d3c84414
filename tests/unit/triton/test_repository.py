"""Which models a repository holds, which of them are served, and how batching is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aiflow_sdk.errors import ModelNotFoundError, RefusedError
from aiflow_servers import places
from aiflow_servers.triton import repository as repositories


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder in ("b-model/1", "a-model/12", "notes/drafts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README").touch()
    return tmp_path


def test_a_model_is_a_folder_with_a_numbered_version(repository: Path) -> None:
    assert repositories.models_in(repository) == ["a-model", "b-model"]


@pytest.mark.parametrize(
    ("wanted", "served"),
    [
        pytest.param([], ["a-model", "b-model"], id="none named means all"),
        pytest.param(["b-model"], ["b-model"], id="one"),
        pytest.param(["b-model", "a-model", "b-model"], ["b-model", "a-model"], id="twice is once"),
    ],
)
def test_choose(repository: Path, wanted: list[str], served: list[str]) -> None:
    assert repositories.choose(repository, wanted) == served


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        pytest.param("b-modell", r"no model 'b-modell'; it has b-model", id="a slip of the pen"),
        pytest.param("zzz", r"it has a-model, b-model", id="nothing like it lists all"),
    ],
)
def test_an_unknown_model_names_the_nearest(repository: Path, wanted: str, says: str) -> None:
    with pytest.raises(ModelNotFoundError, match=says):
        repositories.choose(repository, [wanted])


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        pytest.param("nowhere", "is not a folder", id="no folder"),
        pytest.param("notes", r"holds no model; Triton expects NAME/1/", id="no model in it"),
    ],
)
def test_not_a_repository(repository: Path, folder: str, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        repositories.models_in(repository / folder)


def test_without_batching_is_a_copy_that_differs_in_nothing_else(tmp_path: Path) -> None:
    original = places.model_repository()
    copy = repositories.without_batching(original, tmp_path / "copy")
    assert repositories.models_in(copy) == repositories.models_in(original)
    for name in repositories.models_in(original):
        before, after = (
            text_format.Parse(
                (folder / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
            )
            for folder in (original, copy)
        )
        assert before.HasField("dynamic_batching")
        before.ClearField("dynamic_batching")
        assert after == before
        code = f"{name}/1/model.py"
        assert (copy / code).read_bytes() == (original / code).read_bytes()
