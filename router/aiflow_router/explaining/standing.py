"""How one endpoint stands: what keeps it out, or how much of its share it gets."""

from __future__ import annotations

from aiflow_router.balancing.load import Load
from aiflow_router.balancing.pool import Outlook
from aiflow_router.balancing.slow_start import factor
from aiflow_router.catalog.endpoint import Endpoint, State
from aiflow_router.explaining.explanation import Standing


def draining(endpoint: Endpoint, *, inflight: int) -> Standing:
    return Standing(
        endpoint=endpoint,
        state=State.DRAINING,
        why="its server says so: it ends what it has and gets nothing new",
        pickable=False,
        inflight=inflight,
    )


def standing(load: Load, *, outlook: Outlook, now_s: float, expected_s: float | None) -> Standing:
    """Of an endpoint that is READY by the catalog; the reasons in the order in which they count."""
    state, why, changes_in_s = _kept_out(load, now_s)
    panic = not outlook.fit
    pickable = panic or load in outlook.fit or load in outlook.due
    warm = 1.0
    if state is State.READY and not why:
        warm, why = _warming(load, outlook.slow_start_s, now_s)
        if outlook.zone and load.endpoint.zone != outlook.zone:
            apart = f'not in the router\'s zone "{outlook.zone}", which is preferred'
            why = f"{why}; {apart}" if why else apart
    elif state is not State.READY and panic:
        why += "; used anyway, as no endpoint is fit"
    return Standing(
        endpoint=load.endpoint,
        state=state,
        why=why,
        pickable=pickable,
        changes_in_s=changes_in_s,
        warm=warm,
        inflight=load.inflight,
        expected_s=expected_s,
    )


def _kept_out(load: Load, now_s: float) -> tuple[State, str, float | None]:
    """State, why, and the time until it is looked at again."""
    if load.cool_until_s > now_s:
        left_s = load.cool_until_s - now_s
        times = f"{load.refusals} times in a row" if load.refusals > 1 else "once"
        why = f"no connection to it, {times}; the next call after that is the probe"
        return State.UNREACHABLE, why, left_s
    if load.unhealthy:
        return State.UNHEALTHY, load.unhealthy, None
    if load.ejected:
        return State.EJECTED, *_ejected(load, now_s)
    if load.refusals:
        return State.READY, "was unreachable: the next call that comes is the probe", None
    return State.READY, "", None


def _ejected(load: Load, now_s: float) -> tuple[str, float | None]:
    nth = f"ejection {load.ejections} in a row"
    left_s = load.ejected_until_s - now_s
    if left_s <= 0:
        return f"{nth} is over: the next call is its trial", None
    if load.trial:
        return f"{nth}: its trial call is on the way", left_s
    return f"{nth}: one call on trial after that", left_s


def _warming(load: Load, slow_start_s: float, now_s: float) -> tuple[float, str]:
    age_s = now_s - load.ramps_from_s
    if not slow_start_s or age_s >= slow_start_s:
        return 1.0, ""
    warm = factor(age_s, slow_start_s)
    return warm, f"warming up: {warm:.0%} of its share, all of it in {slow_start_s - age_s:.1f} s"
