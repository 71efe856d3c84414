"""Canaries step by step, as changes of a policy's document."""

import copy
import json
from typing import Any

import pytest

from aiflow_router.config.file import parse_policy
from aiflow_router.policy.edition import canonical
from aiflow_sdk.canary import begun, canary, moved, stepped, stopped
from aiflow_sdk.errors import BadInputError


def document(split: Any) -> dict[str, Any]:
    return {
        "routes": [
            {"match": {"service": "a.B"}},
            {"match": {"model": "m"}, "timeout": "2s", "split": split},
        ]
    }


def weights(found: dict[str, Any], model: str = "m") -> Any:
    return next(r for r in found["routes"] if r["match"].get("model") == model)["split"]["weights"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        pytest.param({"m": 100, "new": 0}, {"m": 90, "new": 10}, id="from nothing to a tenth"),
        pytest.param({"m": 90, "new": 10}, {"m": 50, "new": 50}, id="on to a half"),
        pytest.param({"new": 1, "m": 1}, {"m": 0, "new": 100}, id="and to all, in any order"),
        pytest.param({"m": 3, "new": 1}, {"m": 50, "new": 50}, id="from a quarter"),
        pytest.param(
            {"weights": {"v2": 5, "v1": 95}, "guard": {"errors": "2%", "against": "v1"}},
            {"v1": 90, "v2": 10},
            id="of a name that nothing serves, by the side that the guard calls old",
        ),
    ],
)
def test_a_step_goes_on(split: Any, expected: dict[str, int]) -> None:
    before = document(split)
    kept = copy.deepcopy(before)
    after = stepped(before, "m")
    assert weights(after) == expected
    assert before == kept
    assert after["routes"][0] == before["routes"][0]
    assert after["routes"][1]["timeout"] == "2s"


def test_a_guard_stays_while_it_has_something_to_compare() -> None:
    split = {"weights": {"m": 90, "new": 10}, "by": "tenant", "guard": {"errors": "2%"}}
    half = stepped(document(split), "m")
    assert half["routes"][1]["split"]["guard"] == {"errors": "2%"}
    for percent in (0, 100):
        end = moved(half, "m", percent)
        assert "guard" not in end["routes"][1]["split"]
        assert end["routes"][1]["split"]["by"] == "tenant"


def test_a_canary_is_begun_in_a_route_of_the_model_or_a_new_one() -> None:
    empty: dict[str, Any] = {}
    assert weights(begun(empty, "m", "new")) == {"m": 90, "new": 10}
    routed = {"routes": [{"match": {"model": "m"}, "timeout": "2s"}]}
    found = begun(routed, "m", "new")
    assert weights(found) == {"m": 90, "new": 10}
    assert found["routes"][0]["timeout"] == "2s"


@pytest.mark.parametrize(
    ("split", "why"),
    [
        pytest.param({"m": 0, "new": 100}, "no further step", id="at the end"),
        pytest.param(None, "--new", id="not split"),
        pytest.param({"m": 1, "a": 1, "b": 1}, "one old and one new", id="three sides"),
        pytest.param({"a": 1, "b": 1}, "one old and one new", id="no old side"),
    ],
)
def test_what_has_no_next_step_says_why(split: Any, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        stepped(document(split), "m")


def test_a_model_without_a_route_says_so() -> None:
    with pytest.raises(BadInputError, match="no route matches"):
        canary({"routes": []}, "m")


@pytest.mark.parametrize("new", ["new", "m"])
def test_a_canary_is_not_begun_twice_nor_of_itself(new: str) -> None:
    with pytest.raises(BadInputError):
        begun(document({"m": 1, "new": 1} if new == "new" else None), "m", new)


def test_every_step_is_a_policy_that_the_router_takes_and_gives_back_alike() -> None:
    found = begun({}, "m", "new")
    found["routes"][0]["split"]["guard"] = {"errors": "2%", "latency": "1.5x"}
    shares = []
    for _ in range(3):
        text = canonical(parse_policy(json.dumps(found)))
        assert canonical(parse_policy(text)) == text
        found = json.loads(text)
        shares.append(canary(found, "m").percent)
        if shares[-1] < 100:
            found = stepped(found, "m")
    assert shares == [10, 50, 100]


@pytest.mark.parametrize(
    ("split", "side", "expected"),
    [
        pytest.param(
            {"m": 90, "new": 10}, "new", {"weights": {"m": 90, "new": 0}}, id="written short"
        ),
        pytest.param(
            {"weights": {"m": 1, "x": 1, "y": 1}, "guard": {"errors": "2%"}},
            "x",
            {"weights": {"m": 1, "x": 0, "y": 1}, "guard": {"errors": "2%"}},
            id="another is left, and its guard",
        ),
        pytest.param({"m": 1, "x": 0}, "x", {"m": 1, "x": 0}, id="it was stopped already"),
        pytest.param({"m": 1, "y": 1}, "x", {"m": 1, "y": 1}, id="there is no such side any more"),
    ],
)
def test_a_side_is_stopped(split: Any, side: str, expected: Any) -> None:
    before = document(split)
    assert stopped(before, "m", side)["routes"][1]["split"] == expected
    assert stopped(before, "other", side) == before
    parse_policy(json.dumps(stopped(before, "m", side)), file="p.json")
