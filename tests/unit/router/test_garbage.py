"""What lives on after a long collection is set aside, and after a short one it is not."""

import gc
import itertools

import pytest

from aiflow_router.garbage import LONG_S, kept_short


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
        with kept_short(clock=lambda: next(ticks), freeze=lambda: frozen.append(1)):
            gc.collect(generation)
    finally:
        gc.enable()
    assert len(frozen) == set_aside
    assert (gc.callbacks, gc.get_threshold()) == before
