"""aiflow.yaml: what is meant is taken, anything else is an error that says where and what."""

import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_router.caching.cache import CacheRule
from aiflow_router.config.config import Config
from aiflow_router.config.file import (
    ConfigError,
    load,
    parse,
    plain,
    printed,
    with_discovery,
    with_listen,
)
from aiflow_router.routing.shadow import ShadowRule

DIGEST = "a" * 64


def test_the_projects_own_file_is_valid() -> None:
    config = load(Path(__file__).parents[3] / "aiflow.yaml")
    assert config.listen == Config().listen


def test_consul_may_be_asked_with_all_there_is_and_beside_a_list() -> None:
    config = parse(
        """
        zone: a
        discovery:
          consul:
            address: https://consul.lan:8501
            token_file: /run/secrets/consul
            datacenter:
            ca: ca.pem
            wait: 5s
            last_known: last.json
          static: [{backend: b, address: 'h:1', protocol: oip, models: [m]}]
        """
    )
    assert config.discovery.consul is not None
    settings = config.discovery.consul.settings()
    assert (settings.wait_s, settings.grace_s, settings.datacenter) == (5.0, 60.0, "")
    assert settings.name() == "https://consul.lan:8501"
    assert parse(printed(config)) == config


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == Config()
    assert Config().discovery.embedded is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("lisen: {}", "f:1:1: unknown key `lisen`", id="an unknown section"),
        pytest.param("lisen: {}", "did you mean `listen`?", id="the nearest section is named"),
        pytest.param(
            "routes:\n  - match: {model: a}\n    timout: 2s",
            "f:3:5: unknown key `routes.0.timout`: this version has no such setting; "
            "did you mean `timeout`?",
            id="an unknown key deep inside",
        ),
        pytest.param(
            "discovery: {consul: {adress: x}}", "did you mean `address`?", id="a key of Consul"
        ),
        pytest.param(
            "discovery: {consul: {address: 'h:8500'}}", "must begin with http://", id="no scheme"
        ),
        pytest.param(
            "discovery: {consul: {}, embedded: {}}", "exclude each other", id="two registries"
        ),
        pytest.param(
            "discovery: {consul: {cert: a.pem}}", "belong together", id="a certificate alone"
        ),
        pytest.param(
            "discovery: {consul: {ca: a.pem}}",
            "`ca` has no effect with http://127.0.0.1:8500: write https://",
            id="a certificate for a connection without any",
        ),
        pytest.param("discovery: {consul: {wait: 10m}}", "50ms to 5m", id="a wait without end"),
        pytest.param("discovery: {}", "name a source of endpoints", id="no source of endpoints"),
        pytest.param("listen: {grpc: 7600}", "f:1:10: listen.grpc", id="a number for an address"),
        pytest.param("listen: {grpc: 'h:70000'}", "port 70000", id="a port out of range"),
        pytest.param("listen: {workers: 0}", "greater than or equal to 1", id="no workers"),
        pytest.param("auth: {mode: requird}", "did you mean `required`?", id="a misspelt value"),
        pytest.param("auth: {mode: required}", "nobody could call", id="required without keys"),
        pytest.param(
            "auth: {keys: [{name: a, tenant: t, sha256: abc}]}", "64 lower-case", id="a bad hash"
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
        pytest.param("discovery: {}", "name a source", id="no discovery"),
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
        pytest.param(
            "zone: a\ndiscovery: {static: [{backend: b, address: 'h:1', protocol: oip, "
            "models: [m], zone: b}]}",
            'no static endpoint is in zone "a"',
            id="a zone that nobody is in",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: nowhere, protocol: oip, models: [m]}]}",
            "address:",
            id="a static endpoint with a bad address",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: oip, models: [m], "
            'device: "gpu\\e[2J"}]}',
            "device: must be at most 128 printable characters",
            id="a static endpoint with a device that paints",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: oip}]}",
            "at least one model",
            id="a static endpoint without models",
        ),
        pytest.param(
            "discovery: {static: [{backend: b, address: 'h:1', protocol: grpc, "
            "services: [grpc.health.v1.Health]}]}",
            "answered by the router itself",
            id="a static endpoint that would never be asked",
        ),
        pytest.param("auth: {}\nauth: {}", "f:2:1: key `auth` is there twice", id="a key twice"),
        pytest.param("a: ]", "f:1:4:", id="no YAML"),
        pytest.param("routes:\n\t- a", "f:2:1: there is a tab here", id="a tab"),
        pytest.param("a: " + "[" * 99, "f:1: more than 50 levels", id="deeper than anybody writes"),
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
        pytest.param("policy: {consul_kv: {}}", "policy.consul_kv.key: Field req", id="no key"),
        pytest.param(
            "policy: {consul_kv: {key: /a}}", "must be a key such as aiflow/policy", id="a bad key"
        ),
        pytest.param(
            "policy: {consul_kv: {key: a, address: 'h:8500'}}",
            "must begin with http:// or https://",
            id="no address of Consul",
        ),
        pytest.param(
            "policy: {consul_kv: {key: a, token_file: t}}",
            "`token_file` belongs to an `address`",
            id="a token for nobody",
        ),
        pytest.param(
            "policy: {consul_kv: {key: a, address: 'http://h:1', tls: {ca: x}}}",
            "`tls` has no effect",
            id="certificates for a connection that is not encrypted",
        ),
        pytest.param("- a", "must be a mapping", id="a list"),
    ],
)
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="f")
    assert expected in str(caught.value)


def test_every_problem_is_told_in_order() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("routes:\n- match: {model: a}\n  timeout: 1\nlisten: {http: 1}\nx: 1", file="f")
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["3", "4", "5"]


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


def test_what_looks_after_endpoints_can_be_switched_off() -> None:
    config = parse("health: {active: false}\nejection: {mode: off}\nslow_start: 0s")
    assert (config.health.active, config.ejection.mode, config.slow_start) == (False, "off", 0)
    assert parse("ejection: {max_percent: 10}").ejection.policy().max_percent == 10
    assert parse(printed(config)) == config


def test_secrets_are_not_printed_and_the_rest_can_be_read_again() -> None:
    config = parse(f"auth: {{mode: required, keys: [{{name: n, tenant: t, sha256: {DIGEST}}}]}}")
    assert DIGEST not in printed(config) + str(plain(config)) + repr(config)
    assert parse(printed(Config())) == Config()


def test_flags_win_over_the_file() -> None:
    config = parse("listen: {grpc: '127.0.0.1:1', http: '127.0.0.1:2'}")
    changed = with_listen(config, {"grpc": "127.0.0.1:0"}).listen
    assert (changed.grpc, changed.http) == ("127.0.0.1:0", "127.0.0.1:2")
    with pytest.raises(ConfigError, match="--grpc"):
        with_listen(config, {"grpc": "nonsense"})


def test_the_example_in_the_documentation_is_valid() -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    config = parse(text.split("```yaml\n")[1].split("```")[0])
    assert config.auth.keys[0].may == ("call",)
    assert config.routes[0].timeout == 10


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
    with pytest.raises(ConfigError) as caught:
        parse(f"routes: [{{match: {{model: m}}, {route}}}]", file="f")
    assert expected in str(caught.value)


def test_retries_and_hedges_are_printed_as_they_are_written() -> None:
    text = "retry: {per_try_timeout: 250ms, budget: 12.5%}, hedge: {after: p95, mode: shadow}"
    shown = printed(parse(f"routes: [{{match: {{model: m}}, {text}}}]"))
    for line in ("per_try_timeout: 0.25s", "budget: 12.5%", "after: p95"):
        assert line in shown


@settings(max_examples=20)
@given(
    seconds=st.integers(1, 10**9),
    workers=st.integers(1, 64),
    unit=st.sampled_from(["ms", "s", "m", "h"]),
)
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_what_a_supervisor_hands_to_its_workers_is_what_was_written(
    seconds: int, workers: int, unit: str
) -> None:
    time = f"{seconds}{unit}"
    config = parse(
        f"listen: {{workers: {workers}, drain_timeout: {time}, max_connection_age: {time}}}\n"
        "discovery: {static: [{backend: b, address: 'h:1', protocol: oip, models: [m, n]}]}\n"
        f"auth: {{mode: required, keys: [{{name: k, tenant: t, sha256: {DIGEST}}}]}}\n"
        f"routes: [{{match: {{model: m}}, timeout: {time}}}, {{match: {{model: n}},"
        " retry: {per_try_timeout: 250ms, budget: 12.5%}, hedge: {after: p95}}]"
    )
    handed = config.model_dump_json(exclude_unset=True)
    taken = Config.model_validate_json(handed)
    assert taken.model_dump_json(exclude_unset=True) == handed
    assert taken.listen.drain_timeout == pytest.approx(config.listen.drain_timeout)
    assert taken.auth == config.auth


@pytest.mark.parametrize(
    ("text", "age_s"),
    [
        pytest.param("{}", None, id="with one worker connections may become old"),
        pytest.param("{workers: 2}", 30.0, id="with two they have an age"),
        pytest.param("{workers: 2, max_connection_age: 5s}", 5.0, id="which can be said"),
        pytest.param("{max_connection_age: 5s}", 5.0, id="for one worker too"),
    ],
)
def test_the_age_of_connections(text: str, age_s: float | None) -> None:
    assert parse(f"listen: {text}").listen.connection_age_s() == age_s


@pytest.mark.parametrize(
    ("text", "source", "consul", "address"),
    [
        pytest.param("", None, {"address": "http://a:1"}, None, id="not asked for"),
        pytest.param("", "consul", {}, "http://127.0.0.1:8500", id="by a flag alone"),
        pytest.param(
            "discovery: {embedded: {}}", "consul", {"address": "http://a:1"}, "http://a:1",
            id="a flag over the file",
        ),
        pytest.param(
            "discovery: {consul: {address: 'http://f:1'}}", None, {}, "http://f:1", id="the file"
        ),
        pytest.param(
            "discovery: {consul: {address: 'http://f:1'}}", None, {"address": "http://a:1"},
            "http://a:1", id="another agent than the file's",
        ),
        pytest.param("discovery: {consul: {}}", "embedded", {}, None, id="back to the router"),
    ],
)  # fmt: skip
def test_flags_say_where_endpoints_come_from(
    text: str, source: Literal["embedded", "consul"] | None, consul: dict[str, str],
    address: str | None,
) -> None:  # fmt: skip
    discovery = with_discovery(parse(text), source, consul).discovery
    assert (discovery.consul.address if discovery.consul else None) == address
    assert (discovery.embedded is None) == (address is not None)


def test_what_the_file_says_of_consul_stays_under_the_flags() -> None:
    config = parse("discovery: {consul: {wait: 2s, datacenter: b}, static: []}")
    consul = with_discovery(config, "consul", {"token_file": "/t"}).discovery.consul
    assert consul is not None
    assert (consul.wait, consul.datacenter, consul.token_file) == (2.0, "b", "/t")


def test_a_flag_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--consul: address: .*must begin with http"):
        with_discovery(parse(""), "consul", {"address": "127.0.0.1:8500"})


def test_a_wrong_value_in_a_list_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("routes: [{match: {model: m}, fallback: {to: [a], on: [never]}}]", file="f")
    (problem,) = caught.value.problems
    assert problem.startswith("f:1:55: routes.0.fallback.on.0: Input should be ")
