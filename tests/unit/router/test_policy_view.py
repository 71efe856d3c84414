"""What differs between two policies, and what identifies one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.config.config import Config
from aiflow_router.config.file import differing, parse, parse_policy
from aiflow_router.policy.edition import edition
from aiflow_router.policy.view import COLUMNS, LIMIT_COLUMNS, difference, limit_rows, rows

A, B = "{match: {model: a}, timeout: 2s}", "{match: {service: b.B}}"


def of(text: str) -> dict[str, object]:
    found = edition(parse_policy(text), source="admin", origin="", since_s=0.0)
    document: dict[str, object] = json.loads(found.text)
    return document


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(f"routes: [{A}]", f"routes: [{A}]", [], id="nothing where all is the same"),
        pytest.param(
            f"routes: [{A}, {B}]", f"routes: [{B}, {A}]", [], id="nor where the order is another"
        ),
        pytest.param(f"routes: [{A}]", f"routes: [{A}, {B}]", ["+ service b.B"], id="a new route"),
        pytest.param(f"routes: [{A}]", "routes: []", ["- model a"], id="a route less"),
        pytest.param(
            f"routes: [{A}]",
            "routes: [{match: {model: a}, timeout: 3s, hedge: {after: p95}, overload: {limit: 2}}]",
            [
                "~ model a",
                "  + hedge.after: p95",
                "  + hedge.mode: enforce",
                "  ~ overload.limit: 1024 -> 2",
                "  ~ timeout: 2s -> 3s",
            ],
            id="settings of a route",
        ),
    ],
)
def test_a_difference(old: str, new: str, expected: list[str]) -> None:
    lines = [f"{'  ' * line.depth}{line.sign} {line.text}" for line in difference(of(old), of(new))]
    whole = lines[: len(expected)] if expected and expected[0].startswith("+") else lines
    assert sorted(whole) == sorted(expected)


def test_a_row_a_route() -> None:
    text = f"routes: [{A}, {{match: {{model: c}}, overload: {{mode: off}}}}]"
    found = rows(of(text))
    assert found == [
        ("model a", "2s", "2", "-", "least_request", "1024", "a"),
        ("model c", "15s", "2", "-", "least_request", "-", "c"),
    ]
    assert len(COLUMNS) == len(found[0])


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("split: {a: 9, b: 1}, fallback: [c, d]", "9 a, 1 b -> c -> d"),
        ("fallback: [c]", "a -> c"),
        ("split: {weights: {a: 9, b: 1}, mode: off}, fallback: {to: [c], mode: off}", "a"),
    ],
)
def test_a_row_tells_who_may_answer_in_order(route: str, expected: str) -> None:
    (row,) = rows(of(f"routes: [{{match: {{model: a}}, {route}}}]"))
    assert row[-1] == expected


ROUTES = st.lists(
    st.fixed_dictionaries(
        {"match": st.just(None), "timeout": st.sampled_from(["150ms", "2s", "1.5m"])},
        optional={
            "balance": st.sampled_from(["round_robin", "session"]),
            "retry": st.fixed_dictionaries({"budget": st.integers(0, 100).map("{}%".format)}),
            "hedge": st.sampled_from([{"after": "p95"}, {"after": "10ms"}]),
            "overload": st.sampled_from(
                [{"mode": "off"}, {"limit": "adaptive"}, {"limit": 3, "queue": 0}]
            ),
        },
    ),
    max_size=5,
)


@given(ROUTES)
def test_the_text_of_a_policy_is_that_policy(routes: list[dict[str, object]]) -> None:
    document = {
        "routes": [{**route, "match": {"model": f"m{n}"}} for n, route in enumerate(routes)]
    }
    one = edition(parse_policy(json.dumps(document)), source="file", origin="", since_s=0.0)
    again = edition(parse_policy(one.text), source="admin", origin="x", since_s=1.0)
    assert (again.version, again.text, again.policies) == (one.version, one.text, one.policies)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        pytest.param("routes: [{match: {model: a}}]", [], id="routes may change"),
        pytest.param("zone: a", ["zone"], id="a key at the top"),
        pytest.param(
            "listen: {workers: 2, grpc: '1:1'}", ["listen.grpc", "listen.workers"], id="2"
        ),
        pytest.param("policy: {consul_kv: {key: a}}", ["policy.consul_kv"], id="where it is from"),
    ],
)
def test_what_differs_beside_the_policy(text: str, keys: list[str]) -> None:
    assert differing(Config(), parse(text)) == keys


LIMITS = """limits:
  - {name: all, rate: 1000/s}
  - {name: gpt, match: {model: gpt-5}, per: [tenant], rate: 4/min, burst: 1, wait: true}
  - {name: few, match: {service: a.B}, concurrency: 3, mode: shadow}
  - {name: tiny, rate: 4/min, strict: true, per: [key, model]}
"""


def test_a_line_a_limit() -> None:
    found = [dict(zip(LIMIT_COLUMNS, row, strict=True)) for row in limit_rows(of(LIMITS))]
    assert [row["limit"] for row in found] == ["all", "gpt", "few", "tiny"]
    assert [row["of"] for row in found] == ["all calls", "model gpt-5", "service a.B", "all calls"]
    assert [row["per"] for row in found] == ["platform", "tenant", "platform", "key, model"]
    assert [row["allows"] for row in found] == [
        *("1000/s calls", "4/min calls", "3 at a time", "4/min calls, strict")
    ]
    assert [row["burst"] for row in found] == ["one period", "1", "-", "-"]
    assert [row["over it"] for row in found] == ["refused", "waits", "refused", "refused"]


def test_a_limit_that_changes_is_a_difference() -> None:
    after = LIMITS.replace("1000/s", "900/s").replace(
        "  - {name: tiny, rate: 4/min", "  - {name: x, rate: 4/min"
    )
    lines = [(line.sign, line.text) for line in difference(of(LIMITS), of(after))]
    assert lines[:4] == [
        ("~", "limit all"),
        ("~", "rate: 1000/s -> 900/s"),
        ("-", "limit tiny"),
        ("+", "limit x"),
    ]
    assert ("+", "rate: 4/min") in lines
    assert list(difference(of(LIMITS), of(LIMITS))) == []
