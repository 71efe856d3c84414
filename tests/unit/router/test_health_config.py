"""`health`, `ejection` and `slow_start` of aiflow.yaml."""

import pytest
from unit.router.config_kit import refusal

from aiflow_router.config.file import parse, printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("ejection: {mode: shadw}", "did you mean `shadow`?", id="an unknown mode"),
        pytest.param(
            "ejection: {mode: off, base_time: 1s}", "nothing else here", id="no ejection, for 1 s"
        ),
        pytest.param(
            "health: {active: false, interval: 9s}", "nothing else here", id="no checks every 9 s"
        ),
        pytest.param(
            "health: {mode: off}", "`active: false` switches", id="checks that are off elsewhere"
        ),
        pytest.param(
            "health: {active: false, mode: shadow}", "nothing else here", id="no checks, counted"
        ),
        pytest.param("ejection: {max_percent: 0}", "greater than 0", id="a floor that is a wall"),
        pytest.param(
            "ejection: {base_time: 10m}", "max_time is shorter", id="a longest time too short"
        ),
        pytest.param(
            "health: {interval: 1s}", "timeout is longer than interval", id="checks that overlap"
        ),
        pytest.param("health: {fall: 2}", "unknown key `health.fall`", id="HAProxy's words"),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_what_looks_after_endpoints_can_be_switched_off() -> None:
    config = parse("health: {active: false}\nejection: {mode: off}\nslow_start: 0s")
    assert (config.health.active, config.ejection.mode, config.slow_start) == (False, "off", 0)
    assert parse("ejection: {max_percent: 10}").ejection.policy().max_percent == 10
    assert parse(printed(config)) == config
