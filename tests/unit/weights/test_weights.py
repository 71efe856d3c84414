"""The weights' cache: what makes a run fail, with which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiflow_servers.weights import WeightsError, ensure, lock


def test_every_locked_file_says_where_it_is_from() -> None:
    files = lock.read().files
    assert {file.group for file in files} == {"weights", "pictures", "test-pictures"}
    assert all(file.package.licence and len(file.sha256) == 64 for file in files)


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file is called nope; there are detector\.onnx"):
        ensure(["nope"], cache=tmp_path)
