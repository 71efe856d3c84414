"""Canaries: how much of a model's calls its new version gets, step by step, in a policy's document.

Pure functions of the document, such as {"routes": [...]}, for `PolicyAdmin.edit` and others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiflow_sdk.errors import BadInputError

STEPS = (10, 50, 100)
"""Per cent of the calls that go to the new side, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A split between an old and a new side."""

    model: str
    """What callers ask for."""
    old: str
    new: str
    percent: float
    """Of new calls that go to the new side, by the weights."""

    def next_step(self, steps: Sequence[int] = STEPS) -> int:
        """Raises BadInputError where the last step is done."""
        for step in steps:
            if step > self.percent:
                return step
        raise BadInputError(
            f'"{self.new}" has all calls to "{self.model}" already: there is no further step',
            violations={"model": "is at its last step"},
        )


def canary(document: Mapping[str, Any], model: str) -> Canary:
    """The canary of `model`. Raises BadInputError where its route has none."""
    return _canary(_route(document, model), model)


def _canary(route: Mapping[str, Any], model: str) -> Canary:
    split = route.get("split")
    if not split:
        raise _wrong(
            model,
            f'calls to "{model}" are not split: begin with `aiflow canary {model} --new NAME`',
        )
    weights = _weights(split)
    old = _old(split, model)
    others = [name for name in weights if name != old]
    if old not in weights or len(others) != 1:
        raise _wrong(
            model,
            f'the split of "{model}" is not one old and one new side ({", ".join(weights)}): '
            "change its weights in the policy itself",
        )
    share = weights[others[0]] / sum(weights.values())
    return Canary(model=model, old=old, new=others[0], percent=100 * share)


def begun(
    document: Mapping[str, Any], model: str, new: str, *, percent: int = STEPS[0]
) -> dict[str, Any]:
    """`document` with a canary of `new` in the route of `model`, which is made where it is missing.

    Raises BadInputError where calls to `model` are split already.
    """
    changed = copy.deepcopy(dict(document))
    routes = changed["routes"] = list(changed.get("routes") or ())
    found = [route for route in routes if route["match"].get("model") == model]
    if not found:
        found = [{"match": {"model": model}}]
        routes += found
    if found[0].get("split"):
        raise _wrong(model, f'calls to "{model}" are split already: take a step, or end that first')
    if new == model:
        raise _wrong(model, f'"{model}" cannot be its own new version: name another model')
    found[0]["split"] = {"weights": {model: 100 - percent, new: percent}}
    return changed


def moved(document: Mapping[str, Any], model: str, percent: int) -> dict[str, Any]:
    """`document` with `percent` of the calls to `model` going to its new side.

    A guard that had nothing left to compare is left out: at 0 and at 100.

    Raises BadInputError where the route of `model` has no canary.
    """
    changed = copy.deepcopy(dict(document))
    route = _route(changed, model)
    found = _canary(route, model)
    split = route["split"] = _long(route["split"])
    split["weights"] = {found.old: 100 - percent, found.new: percent}
    if percent in (0, 100):
        split.pop("guard", None)
    return changed


def stepped(
    document: Mapping[str, Any], model: str, *, steps: Sequence[int] = STEPS
) -> dict[str, Any]:
    """`document` with the canary of `model` one step on. Raises BadInputError as `moved`."""
    return moved(document, model, canary(document, model).next_step(steps))


def stopped(document: Mapping[str, Any], model: str, side: str) -> dict[str, Any]:
    """`document` with no more calls to `model` going to `side`, as its guard does it.

    Where it says so already, or its split has no such side by now, it stays as it is.
    """
    changed = copy.deepcopy(dict(document))
    for route in changed.get("routes") or ():
        split = route.get("split")
        if route["match"].get("model") != model or not split or not _weights(split).get(side):
            continue
        split = route["split"] = _long(split)
        old = _old(split, model)
        split["weights"] = {**split["weights"], side: 0}
        if not any(weight for name, weight in split["weights"].items() if name != old):
            split.pop("guard", None)
    return changed


def _route(document: Mapping[str, Any], model: str) -> Any:
    for route in document.get("routes") or ():
        if route["match"].get("model") == model:
            return route
    raise _wrong(model, f'no route matches model "{model}": begin with --new, or add one')


def _long(split: Mapping[str, Any]) -> dict[str, Any]:
    """The long form of a split, which may be written short."""
    return dict(split) if isinstance(split.get("weights"), Mapping) else {"weights": dict(split)}


def _weights(split: Mapping[str, Any]) -> Mapping[str, int]:
    weights: Mapping[str, int] = _long(split)["weights"]
    return weights


def _old(split: Mapping[str, Any], model: str) -> str:
    against: str | None = (_long(split).get("guard") or {}).get("against")
    return against or model


def _wrong(model: str, why: str) -> BadInputError:
    return BadInputError(why, violations={"model": f"{model}: {why}"})
