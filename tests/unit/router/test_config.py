"""aiflow.yaml: what is meant is taken, anything else is an error that says where and what."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.router.config_kit import DIGEST, refusal

from aiflow_router.config.config import Config
from aiflow_router.config.file import ConfigError, load, parse, with_listen


def test_the_projects_own_file_is_valid() -> None:
    config = load(Path(__file__).parents[3] / "aiflow.yaml")
    assert config.listen == Config().listen


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == Config()
    assert Config().discovery.embedded is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("lisen: {}", "f:1:1: unknown key `lisen`", id="an unknown section"),
        pytest.param("lisen: {}", "did you mean `listen`?", id="the nearest section is named"),
        pytest.param("listen: {grpc: 7600}", "f:1:10: listen.grpc", id="a number for an address"),
        pytest.param("listen: {grpc: 'h:70000'}", "port 70000", id="a port out of range"),
        pytest.param("listen: {workers: 0}", "greater than or equal to 1", id="no workers"),
        pytest.param("auth: {}\nauth: {}", "f:2:1: key `auth` is there twice", id="a key twice"),
        pytest.param("a: ]", "f:1:4:", id="no YAML"),
        pytest.param("routes:\n\t- a", "f:2:1: there is a tab here", id="a tab"),
        pytest.param("a: " + "[" * 99, "f:1: more than 50 levels", id="deeper than anybody writes"),
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
    assert expected in refusal(text)


def test_every_problem_is_told_in_order() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("routes:\n- match: {model: a}\n  timeout: 1\nlisten: {http: 1}\nx: 1", file="f")
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["3", "4", "5"]


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


def test_a_wrong_value_in_a_list_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("routes: [{match: {model: m}, fallback: {to: [a], on: [never]}}]", file="f")
    (problem,) = caught.value.problems
    assert problem.startswith("f:1:55: routes.0.fallback.on.0: Input should be ")
