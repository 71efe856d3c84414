"""What lives on after a long collection is set aside, and after a short one it is not."""

import asyncio
import gc
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from aiflow_router.catalog.publisher import Follower
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.garbage import CHANGES, LONG_S, kept_short


def nothing(_: Follower) -> None:
    """The catalog of a test that has none."""


@pytest.mark.parametrize(
    ("generation", "took_s", "set_aside"),
    [
        pytest.param(2, LONG_S, 2, id="a long full collection sets aside what it found alive"),
        pytest.param(2, LONG_S / 2, 1, id="a short one does not"),
        pytest.param(1, LONG_S, 1, id="one of young objects never does"),
    ],
)
def test_long_collections(generation: int, took_s: float, set_aside: int) -> None:
    frozen: list[int] = []
    ticks = itertools.count(0.0, took_s)
    before = (list(gc.callbacks), gc.get_threshold())
    gc.disable()
    try:
        with kept_short(nothing, clock=lambda: next(ticks), freeze=lambda: frozen.append(1)):
            gc.collect(generation)
    finally:
        gc.enable()
    assert len(frozen) == set_aside
    assert (gc.callbacks, gc.get_threshold()) == before


async def test_many_changes_of_the_catalog_ask_for_a_collection_by_themselves() -> None:
    full: list[int] = []

    def counted(phase: str, info: Mapping[str, Any]) -> None:
        if (phase, info["generation"]) == ("start", 2):
            full.append(1)

    followers: list[Follower] = []
    gc.disable()
    try:
        with kept_short(followers.append, freeze=lambda: None):
            gc.callbacks.append(counted)
            (changed,) = followers
            for number in range(1, 2 * CHANGES + 1):
                changed(Snapshot(), Change(gone=frozenset({("b", f"127.0.0.1:{number}")})))
                await asyncio.sleep(0)
                assert len(full) == number // CHANGES
    finally:
        gc.callbacks.remove(counted)
        gc.enable()
