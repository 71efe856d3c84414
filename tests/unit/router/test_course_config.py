"""`split` and `fallback` in aiflow.yaml: what is meant is taken, what could not work is refused."""

import json
from pathlib import Path

import pytest
from unit.router.config_kit import refusal

from aiflow_router.config.config import Config
from aiflow_router.config.courses import circles
from aiflow_router.config.file import parse, parse_policy, printed
from aiflow_router.policy.edition import canonical
from aiflow_router.routing.fallback import CONDITIONS
from aiflow_router.routing.guard import Guard

STATIC = "discovery: {static: [{backend: b, address: 'h:1', protocol: oip, models: [m, lite]}]}\n"
ECHO = "discovery: {static: [{backend: b, address: 'h:1', protocol: grpc, services: [a.Echo]}]}\n"


def route(text: str) -> str:
    return f"routes:\n- match: {{model: m}}\n  {text}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            route("fallback: {too: [a]}"),
            "f:3:14: unknown key `routes.0.fallback.too`: this version has no such setting; "
            "did you mean `to`?",
            id="an unknown key of a fallback",
        ),
        pytest.param(
            route("fallback: {to: [a], on: [overlod]}"),
            "did you mean `overload`?",
            id="an unknown condition",
        ),
        pytest.param(route("fallback: []"), "at least 1 item", id="a fallback to nobody"),
        pytest.param(route("fallback: {to: [a], on: []}"), "at least 1 item", id="on no condition"),
        pytest.param(
            route("fallback: [m]"),
            'f:2:3: routes.0: `fallback` leads to "m" itself',
            id="a fallback to the model that failed",
        ),
        pytest.param(route("fallback: [a, a]"), '"a" is there twice', id="a candidate twice"),
        pytest.param(
            route("fallback: {to: [a], on: [overload, overload]}"),
            '"overload" is there twice',
            id="a condition twice",
        ),
        pytest.param(
            route("fallback: {to: [a], on: [deadline_share]}"),
            "add one, such as `deadline_share: 60%`",
            id="a condition on a share without one",
        ),
        pytest.param(
            route("fallback: {to: [a], on: [overload], deadline_share: 60%}"),
            "`on` does not list it",
            id="a share that no condition is on",
        ),
        pytest.param(
            route("fallback: {to: [a], deadline_share: 100%}"), "below 100%", id="all of the time"
        ),
        pytest.param(
            route("fallback: {to: [a], deadline_share: 0%}"), "above 0%", id="none of the time"
        ),
        pytest.param(
            "routes: [{match: {service: a.B}, fallback: [c]}]",
            "`fallback` is for routes that match a `model`",
            id="a fallback of a service",
        ),
        pytest.param(
            "routes: [{match: {service: a.B}, split: {a: 1, b: 2}}]",
            "`split` is for routes that match a `model`",
            id="a split of a service",
        ),
        pytest.param(
            "routes:\n- {match: {model: a}, fallback: [b]}\n- {match: {model: b}, fallback: [c]}\n"
            "- {match: {model: c}, fallback: [a]}",
            "f:4:23: routes.2.fallback: fallbacks go round, a -> b -> c -> a",
            id="fallbacks that go round",
        ),
        pytest.param(
            STATIC + route("fallback: [light]"),
            'f:4:14: routes.0.fallback.to.0: no static endpoint serves "light" and none can '
            "register; did you mean `lite`?",
            id="a candidate that can never be there",
        ),
        pytest.param(
            STATIC + route("split: {m: 9, lit: 1}"),
            'f:4:17: routes.0.split.weights.lit: no static endpoint serves "lit"',
            id="a side that can never be there",
        ),
        pytest.param(
            "routes:\n- {match: {model: a}, fallback: [b]}\n"
            "- {match: {model: b}, split: {b1: 1, b2: 1}}",
            "name one of b1, b2",
            id="a candidate that is only split into others",
        ),
        *(
            pytest.param(
                f"routes:\n- match: {{model: name}}\n  split: {{a: 1, b: 1}}\n  {setting}",
                f"f:4:3: routes.0.{setting.partition(':')[0]}: has no effect: calls go to a, b, "
                "each by its own route",
                id=f"a name for others, with {setting}",
            )
            for setting in (
                "balance: peak_ewma",
                "hedge: {after: p95}",
                "overload: {limit: 9}",
                "cache: {ttl: 1s}",
                "shadow: {to: c, percent: 1}",
            )
        ),
        pytest.param(route("split: {m: 100}"), "as without it", id="a split into itself"),
        pytest.param(route("split: {a: 0, b: 0}"), "all are 0", id="weights of nothing"),
        pytest.param(route("split: {a: 1.5, b: 1}"), "valid integer", id="half a weight"),
        pytest.param(route("split: {a: -1, b: 1}"), "greater than or equal to 0", id="below 0"),
        pytest.param(
            route("split: {weigths: {a: 1}}"), "did you mean `weights`?", id="a misspelt key"
        ),
        pytest.param(
            route("split: {weights: {a: 1, b: 1}, by: tennant}"),
            "did you mean `tenant`?",
            id="kept by nothing",
        ),
        pytest.param(
            route("split: {weights: {m: 1, b: 1}, guard: {}}"),
            "looks at nothing",
            id="a guard that looks at nothing",
        ),
        pytest.param(
            route("split: {weights: {m: 1, b: 1}, guard: {errors: 2}}"),
            'such as "20%"',
            id="errors without a sign",
        ),
        pytest.param(
            route("split: {weights: {m: 1, b: 1}, guard: {latency: 0.5x}}"),
            "1x or more",
            id="a bound that a good side breaks",
        ),
        pytest.param(
            route("split: {weights: {m: 0, b: 1}, guard: {errors: 2%}}"),
            '"m", which gets no calls',
            id="a guard without an old side",
        ),
        pytest.param(
            route("split: {weights: {m: 1, b: 0}, guard: {errors: 2%}}"),
            'nothing but "m"',
            id="a guard without a new side",
        ),
        pytest.param(
            route("split: {weights: {a: 1, b: 1}, guard: {errors: 2%}}"),
            "name it with `against`, one of a, b",
            id="a guard that cannot know the old side",
        ),
        pytest.param(
            route("split: {weights: {v1: 1, v2: 1}, guard: {errors: 2%, against: v11}}"),
            "did you mean `v1`?",
            id="an old side that is none",
        ),
        pytest.param(
            route("split: {weights: {m: 1, b: 1}, mode: shadow, guard: {errors: 2%}}"),
            "nothing to compare while the split's mode is shadow",
            id="a guard of what is only counted",
        ),
        pytest.param(
            "routes: [{match: {service: inference.GRPCInferenceService}}]",
            'f:1:19: routes.0.match.service: no endpoint can ever serve it: "inference.'
            'GRPCInferenceService" is answered by the router itself; match a model',
            id="a route of what the router answers itself",
        ),
        pytest.param(
            "routes: [{match: {service: a/Echo}}]",
            "no endpoint can ever serve it",
            id="a service that can have no such name",
        ),
        pytest.param(
            "routes: [{match: {model: 'm '}}]", 'serve it: "m "', id="a model with a space"
        ),
        pytest.param(
            route("fallback: [lite, 'l ite']"),
            'f:3:20: routes.0.fallback.to.1: no endpoint can ever serve it: "l ite"',
            id="a candidate with a space",
        ),
        pytest.param(
            route("split: {m: 1, 'l ite': 1}"),
            'f:3:17: routes.0.split.weights.l ite: no endpoint can ever serve it: "l ite"',
            id="a side with a space",
        ),
        pytest.param(
            STATIC + "routes: [{match: {model: light}, timeout: 2s}]",
            'f:2:19: routes.0.match.model: no static endpoint serves "light" and none can '
            "register; did you mean `lite`?",
            id="a route of a model that can never be there",
        ),
        pytest.param(
            STATIC + "routes: [{match: {model: x}, fallback: {to: [m], mode: shadow}}]",
            'routes.0.match.model: no static endpoint serves "x"',
            id="the same, with a fallback that is only counted",
        ),
        pytest.param(
            ECHO + "routes: [{match: {service: a.Ecko}}]",
            'f:2:19: routes.0.match.service: no static endpoint serves "a.Ecko" and none can '
            "register; did you mean `a.Echo`?",
            id="a route of a service that can never be there",
        ),
    ],
)
def test_what_could_not_work_is_refused(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize("to", ["split: {m: 1, lite: 1}", "fallback: [lite]"])
def test_a_name_for_other_models_needs_no_endpoint_and_may_be_limited(to: str) -> None:
    limits = "limits: [{name: a, rate: 1/s, match: {model: alias}}]\n"
    config = parse(f"{STATIC}{limits}routes: [{{match: {{model: alias}}, {to}}}]")
    assert config.routes[0].match.model == "alias"
    assert "limits.0.match.model: can never match" in refusal(STATIC + limits)


def test_the_short_forms_mean_the_long_ones() -> None:
    short = parse(route("split: {m: 90, v2: 10}\n  fallback: [v2, lite]"))
    long = parse(
        route("split: {weights: {m: 90, v2: 10}, by: request}\n  fallback: {to: [v2, lite]}")
    )
    assert short.routes[0].policy() == long.routes[0].policy()
    policy = short.routes[0].policy()
    assert policy.fallback is not None
    assert policy.fallback.on == set(CONDITIONS) - {"deadline_share"}
    assert policy.split is not None
    assert (policy.split.old, policy.split.guard) == ("m", None)


def test_everything_that_can_be_said_is_taken() -> None:
    config = parse(
        route(
            "split: {weights: {v1: 9, v2: 1}, by: session, guard: {errors: 2%, latency: 1.5x, "
            "after: 20, against: v1, mode: shadow}}\n"
            "  fallback: {to: [v1, lite], on: [overload, deadline_share], deadline_share: 60%, "
            "mode: shadow}"
        )
    )
    policy = config.routes[0].policy()
    assert policy.split is not None
    assert policy.split.guard == Guard(errors=0.02, latency=1.5, after=20, shadow=True)
    assert (policy.split.old, policy.split.by) == ("v1", "session")
    assert policy.fallback is not None
    assert (policy.fallback.deadline_share, policy.fallback.shadow) == (0.6, True)
    assert policy.fallback.on == {"overload", "deadline_share"}


def test_off_leaves_it_out_and_keeps_it_written() -> None:
    config = parse(
        route("split: {weights: {a: 1, b: 1}, mode: off}\n  fallback: {to: [a], mode: off}")
    )
    policy = config.routes[0].policy()
    assert (policy.split, policy.fallback) == (None, None)
    assert "mode: 'off'" in printed(config)


@pytest.mark.parametrize(
    "text",
    [
        "split: {m: 90, v2: 10}\n  fallback: [v2]",
        "split: {weights: {v2: 9, v1: 1}, guard: {latency: 1.5x, against: v2}}",
        "fallback: {to: [z, a], on: [overload, deadline_share], deadline_share: 60%}",
    ],
)
def test_what_is_printed_stored_and_handed_on_means_the_same(text: str) -> None:
    config = parse(route(text))
    assert parse(printed(config)).routes == config.routes
    handed = config.model_dump_json(exclude_unset=True)
    assert Config.model_validate_json(handed).routes == config.routes
    stored = canonical(config.policy_document())
    assert json.loads(stored) == json.loads(canonical(parse_policy(stored)))
    assert parse_policy(stored).routes[0].policy() == config.routes[0].policy()


def test_a_fallback_to_the_old_side_of_a_split_is_no_circle() -> None:
    config = parse(route("split: {m: 9, v2: 1}\n  fallback: [m, lite]"))
    assert config.routes[0].fallback is not None


def test_each_circle_is_found() -> None:
    to = {"a": ("b", "c"), "b": ("d",), "c": ("a",), "d": ("b",), "e": ("a",), "f": ("f",)}
    assert set(circles(to)) == {("b", "d"), ("a", "c")}


def test_the_examples_in_the_documentation_are_valid() -> None:
    text = (Path(__file__).parents[3] / "docs" / "routing.md").read_text()
    examples = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    routes = [parse(example).routes[0] for example in examples if example.startswith("routes:")]
    assert any(route.fallback is not None for route in routes)
    assert any(route.split is not None for route in routes)
