"""`routes` of aiflow.yaml: what each setting of a route takes, and what could not matter."""

import pytest
from unit.router.config_kit import refusal

from aiflow_router.caching.cache import CacheRule
from aiflow_router.config.file import parse, printed
from aiflow_router.routing.shadow import ShadowRule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "routes:\n  - match: {model: a}\n    timout: 2s",
            "f:3:5: unknown key `routes.0.timout`: this version has no such setting; "
            "did you mean `timeout`?",
            id="an unknown key deep inside",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n- match: {model: a}",
            'two routes match model "a"',
            id="a route that could never match",
        ),
        pytest.param("routes: [{match: {}}]", "either a `model` or a", id="a match of nothing"),
        pytest.param(
            "routes: [{match: {model: a}, timeout: 2}]", "with its unit", id="a time without unit"
        ),
        pytest.param(
            "routes: [{match: {model: a}, timeout: 0s}]", "longer than 0", id="no time at all"
        ),
        pytest.param(
            "routes: [{match: {model: a}, balance: least_requests}]",
            "did you mean `least_request`?",
            id="an unknown balance",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  overload: {limt: 2}",
            "f:3:14: unknown key `routes.0.overload.limt`: this version has no such setting; "
            "did you mean `limit`?",
            id="an unknown key of overload",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: adaptiv}}]",
            "routes.0.overload.limit: must be a number of calls, 1 to 100000, or `adaptive`",
            id="a limit that is no number",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: 0}}]", "1 to 100000", id="no calls"
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: 9, min: 2}}]",
            "this limit is fixed",
            id="bounds of a fixed limit",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: adaptive, min: 9, max: 8}}]",
            "`min` 9 is above `max` 8",
            id="bounds the wrong way round",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: adaptive, max: 2}}]",
            "`min` 3 is above `max` 2",
            id="a bound below the default of the other",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {mode: off, queue: 9}}]",
            "nothing else here has an effect",
            id="settings of what is off",
        ),
        pytest.param(
            "routes: [{match: {model: a}, overload: {limit: adaptive, mode: shadow}}]",
            "learns from what it lets in",
            id="an adaptive limit in shadow",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  balance: batch_aware",
            "f:2:3: routes.0: `balance: batch_aware` needs `latency_aim`",
            id="batches filled without a limit",
        ),
        pytest.param(
            "routes: [{match: {model: a}, latency_aim: 1s}]",
            "is for `balance: batch_aware` only",
            id="an aim that another balance does not obey",
        ),
        pytest.param(
            "routes: [{match: {service: a.B}, balance: batch_aware, latency_aim: 1s}]",
            "knows no batches of a service",
            id="batches of a service",
        ),
        pytest.param(
            "routes: [{match: {model: a}, timeout: 1s, balance: batch_aware, latency_aim: 1s}]",
            "must be shorter than `timeout`, which is 1s",
            id="an aim that is met only by failures",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  cache: {max_mb: 8}",
            "f:3:3: routes.0.cache: needs `ttl`",
            id="answers kept for no said time",
        ),
        pytest.param(
            "routes: [{match: {model: a}, cache: {ttl: 1s, mode: off}}]",
            "nothing else here has an effect",
            id="a cache that is off, for 1 s",
        ),
        pytest.param(
            "routes: [{match: {model: a}, cache: {ttl: 1s, max_mb: 0}}]",
            "routes.0.cache.max_mb",
            id="a cache without room",
        ),
        pytest.param(
            "routes:\n- match: {service: a.B}\n  cache: {ttl: 1s}",
            "f:3:3: routes.0.cache: is for models",
            id="a cache of a service",
        ),
        pytest.param(
            "routes:\n- match: {service: a.B}\n  shadow: {to: b, percent: 1}",
            "f:3:3: routes.0.shadow: is for models",
            id="a shadow of a service",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  shadow: {percent: 5,\n    to: a}",
            'f:4:5: routes.0.shadow.to: "a" is the model of this route itself',
            id="a model that is its own shadow",
        ),
        *(
            pytest.param(
                f"routes: [{{match: {{model: a}}, shadow: {{to: b, percent: {percent}}}}}]",
                "f:1:46: routes.0.shadow.percent: must be a number above 0 and up to 100",
                id=f"copies of {percent} percent",
            )
            for percent in ("0", "-1", "101", "10%", ".nan", "yes")
        ),
        pytest.param(
            "routes:\n- {match: {model: a}, shadow: {to: b, percent: 1}}\n"
            "- {match: {model: b}, shadow: {to: c, percent: 1}}\n"
            "- match: {model: c}\n  shadow: {to: b, percent: 1}",
            "f:3:32: routes.1.shadow.to: shadows go in a circle, b -> c -> b",
            id="shadows in a circle",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: oip, models: [a, abc]}]}\n"
            "routes:\n- match: {model: a}\n  shadow: {to: abd, percent: 1}",
            'f:4:12: routes.0.shadow.to: no static endpoint serves "abd" and none can register; '
            "did you mean `abc`?",
            id="a shadow that nothing serves",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n- match: {service: b}\n- match: {model: a}",
            'f:4:3: routes.2.match: two routes match model "a", this one and routes.0',
            id="the second of two routes for one model, at its line",
        ),
        pytest.param(
            "routes:\n- match: {modell: a}",
            "f:2:11: unknown key `routes.0.match.modell`: this version has no such setting; did "
            "you mean `model`?",
            id="an unknown key of match",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  retry: {atempts: 2}",
            "f:3:11: unknown key `routes.0.retry.atempts`: this version has no such setting; did "
            "you mean `attempts`?",
            id="an unknown key of retry",
        ),
        pytest.param(
            "routes:\n- match: {model: a}\n  hedge: {afterr: 1s}",
            "f:3:11: unknown key `routes.0.hedge.afterr`: this version has no such setting; did "
            "you mean `after`?",
            id="an unknown key of hedge",
        ),
        pytest.param(
            "routes: {model: a}", "f:1:1: routes: Input should be a valid", id="no list of routes"
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        pytest.param(
            "retry: {attempts: 1, per_try_timeout: 1s}", "`attempts: 1`", id="no try to turn to"
        ),
        pytest.param("retry: {per_try_timeout: 20s}", "not shorter", id="a try as long as a call"),
        pytest.param("hedge: {after: 15s}", "not shorter", id="a hedge when all is over"),
        pytest.param("hedge: {}", "hedge: needs `after`", id="a hedge without a time"),
        pytest.param(
            "hedge: {after: p95, mode: off}", "nothing else here", id="a hedge that is off, at p95"
        ),
        pytest.param(
            "retry: {attempts: 3, mode: off}", "nothing else here", id="three tries, but none"
        ),
        pytest.param(
            "retry: {attempts: 1, mode: shadow}", "no retry to count", id="one try, to be counted"
        ),
        pytest.param("retry: {budget: 20}", 'such as "20%"', id="a share without its sign"),
        pytest.param("retry: {budget: 120%}", "0% to 100%", id="more than all calls"),
    ],
)
def test_a_setting_that_could_not_matter_is_refused(route: str, expected: str) -> None:
    assert expected in refusal(f"routes: [{{match: {{model: m}}, {route}}}]")


def test_durations_are_read_in_seconds() -> None:
    text = "routes:\n- {match: {model: a}, timeout: 150ms}\n- {match: {model: b}, timeout: 1.5m}"
    assert [route.timeout for route in parse(text).routes] == [0.15, 90]


def test_overload_is_read_with_its_defaults() -> None:
    text = (
        "routes:\n- match: {model: a}\n- {match: {model: b}, overload: {mode: off}}\n"
        "- {match: {model: c}, overload: {limit: adaptive, max: 9}}"
    )
    config = parse(text)
    default, off, adaptive = (route.overload.record() for route in config.routes)
    assert (default.limit, default.queue, default.mode) == (1024, 128, "enforce")
    assert off.mode == "off"
    assert (adaptive.limit, adaptive.lowest, adaptive.highest) == (None, 3, 9)
    assert parse(printed(config)) == config


def test_cache_and_shadow_are_read_and_printed() -> None:
    config = parse(
        "routes:\n- {match: {model: a}, cache: {ttl: 60s}, shadow: {to: b, percent: 12.5}}\n"
        "- {match: {model: b}, cache: {ttl: 1m, max_mb: 1, mode: shadow}}\n"
        "- {match: {model: c}, cache: {mode: off}}"
    )
    kept, watched, off = (route.cache for route in config.routes)
    assert kept is not None
    assert watched is not None
    assert off is not None
    assert kept.rule() == CacheRule(ttl_s=60, max_bytes=64 * 1024 * 1024)
    assert watched.rule() == CacheRule(ttl_s=60, max_bytes=1024 * 1024, shadow=True)
    assert off.rule() is None
    shadow = config.routes[0].shadow
    assert shadow is not None
    assert shadow.rule() == ShadowRule(to="b", share=0.125, max_in_flight=16)
    assert parse(printed(config)) == config


def test_retries_and_hedges_are_printed_as_they_are_written() -> None:
    text = "retry: {per_try_timeout: 250ms, budget: 12.5%}, hedge: {after: p95, mode: shadow}"
    shown = printed(parse(f"routes: [{{match: {{model: m}}, {text}}}]"))
    for line in ("per_try_timeout: 0.25s", "budget: 12.5%", "after: p95"):
        assert line in shown
