"""Scopes of keys: which patterns let what through, and which could never."""

from __future__ import annotations

import time

import pytest

from aiflow_router.identity.scope import scope
from aiflow_sdk import errors

ALL = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize(
    ("patterns", "model", "passes"),
    [
        pytest.param(["gpt-5"], "gpt-5", True, id="a name is itself"),
        pytest.param(["gpt-5"], "gpt-50", False, id="and no longer one"),
        pytest.param(["gpt-*"], "gpt-", True, id="a star may be nothing"),
        pytest.param(["gpt-*"], "agpt-5", False, id="a pattern is of the whole name"),
        pytest.param(["a", "b*"], "bc", True, id="one of several is enough"),
        pytest.param(["gpt-[45]"], "gpt-5", True, id="one of some characters"),
        pytest.param(["comfy/*"], "comfy/a/b", True, id="a star reaches over slashes"),
        pytest.param(["*"], "a\nb", True, id="and over any character"),
        pytest.param(["a.c"], "abc", False, id="a point is a point"),
        pytest.param(["a|b"], "a", False, id="what a regex would take for its own is text"),
        pytest.param(["x"], "", False, id="no name at all"),
    ],
)
def test_a_model_passes_by_pattern(patterns: list[str], model: str, passes: bool) -> None:
    found = scope(patterns, None)
    assert found is not None
    if passes:
        found.check_model(model, "aif_1")
        return
    with pytest.raises(errors.PermissionDeniedError, match="aif_1") as caught:
        found.check_model(model, "aif_1")
    assert caught.value.reason == "MODEL_FORBIDDEN"


@pytest.mark.parametrize(
    ("models", "methods", "problem"),
    [
        pytest.param([], None, "models: is empty", id="good for nothing"),
        pytest.param(None, [""], "is empty and matches nothing", id="an empty pattern"),
        pytest.param(None, ["a.B/C"], 'write "/a.B/C"', id="a method without its slash"),
        pytest.param(["*a*b*c*d*e"], None, "more than 4 stars", id="many stars"),
        pytest.param(["x" * 300], None, "longer than 256", id="a long one"),
        pytest.param([str(n) for n in range(100)], None, "at most 64", id="many patterns"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(
    models: list[str] | None, methods: list[str] | None, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        scope(models, methods)


def test_no_patterns_are_no_scope() -> None:
    assert scope(None, None) is None


def test_what_is_told_names_the_key_and_what_it_is_for() -> None:
    found = scope(["gpt-*"], None)
    assert found is not None
    with pytest.raises(errors.PermissionDeniedError) as caught:
        found.check_service("aiflow.imaging.v1.ImagingService", "aif_1a2b3c4d")
    assert caught.value.reason == "METHOD_FORBIDDEN"
    assert 'models only ("gpt-*")' in caught.value.message
    assert "aif_1a2b3c4d" in caught.value.message


def test_the_worst_name_for_the_worst_pattern_is_soon_refused() -> None:
    """Who may call chooses the name: it must not hold up all other calls."""
    found = scope(["*a*a*a*b"], None)
    assert found is not None
    began_s = time.perf_counter()
    with pytest.raises(errors.PermissionDeniedError):
        found.check_model("a" * 2000, "aif_1")
    assert time.perf_counter() - began_s < 1
