"""What a call's plan decides, with the clock and the sleeping passed in."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from aiflow_sdk import BadInputError, DeadlineExceededError, NoEndpointError, Retry
from aiflow_sdk._plan import Plan, new_plan
from aiflow_sdk._settings import Settings


def settings(**changed: object) -> Settings:
    options = {"router": "h:1", "api_key": "secret", "timeout_s": 60.0, "tls": None, "retry": None}
    return Settings.resolve(**(options | changed))  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def plan_at(clock: Clock, *, timeout_s: float, retry: Retry | None = None) -> Plan:
    return Plan(
        method="/s/M",
        settings=settings(retry=retry),
        safe=True,
        timeout_s=timeout_s,
        metadata=(),
        request_id="r",
        clock=clock,
        started_s=clock.now_s,
    )


@given(
    timeout_s=st.floats(0.01, 10),
    attempts=st.integers(1, 8),
    work_s=st.floats(0, 2),
    asked_s=st.one_of(st.none(), st.floats(-1, 5)),
)
def test_no_attempt_begins_past_the_deadline_and_none_too_many(
    timeout_s: float, attempts: int, work_s: float, asked_s: float | None
) -> None:
    clock = Clock()
    plan = plan_at(clock, timeout_s=timeout_s, retry=Retry(attempts=attempts))
    begun: list[float] = []

    def attempt() -> None:
        left_s = plan.remaining_s()
        begun.append(clock.now_s - plan.started_s)
        clock.now_s += min(work_s, left_s)
        raise NoEndpointError("none", retry_after_s=asked_s)

    with pytest.raises((NoEndpointError, DeadlineExceededError)):
        plan.retrying(sleep=clock.sleep)(attempt)
    assert 1 <= len(begun) <= attempts
    assert all(at_s < timeout_s for at_s in begun)
    if asked_s is None:
        assert all(0 <= s <= 0.25 for s in clock.slept_s)
    elif asked_s < 0:
        assert len(begun) == 1
    else:
        assert set(clock.slept_s) <= {asked_s}


@pytest.mark.parametrize(
    ("what", "given_metadata", "sent"),
    [
        ("the key goes along", [], {"authorization": "Bearer secret"}),
        ("a key of the call's own wins", [("X-API-Key", "own")], {"x-api-key": "own"}),
        ("an id of the call's own wins", [("x-request-id", "i")], {"x-request-id": "i"}),
    ],
)
def test_metadata_is_added_once(
    what: str, given_metadata: list[tuple[str, str]], sent: dict[str, str]
) -> None:
    plan = new_plan(settings(), "/s/M", metadata=given_metadata)
    names = [name for name, _ in plan.metadata]
    assert len(names) == len(set(names))
    assert sent.items() <= dict(plan.metadata).items()
    assert plan.request_id == dict(plan.metadata)["x-request-id"]


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("an address without a port", {"router": "localhost"}),
        ("an address that is a URL", {"router": "http://localhost:7600"}),
        ("a port that is none", {"router": "localhost:99999"}),
        ("no time at all", {"timeout_s": 0}),
        ("endless time", {"timeout_s": float("inf")}),
        ("a key with a line break", {"api_key": "a\nb"}),
    ],
)
def test_settings_that_cannot_work_are_refused(what: str, changed: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        settings(**changed)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFLOW_ROUTER", "env:1")
    monkeypatch.setenv("AIFLOW_API_KEY", "env-key")
    assert settings(router=None, api_key=None).router == "env:1"
    assert settings(router=None, api_key=None).api_key == "env-key"
    assert settings().router == "h:1"
    assert settings().api_key == "secret"
    assert "secret" not in repr(settings())
    monkeypatch.delenv("AIFLOW_ROUTER")
    assert settings(router=None).router == "127.0.0.1:7600"


def test_retry_and_timeouts_are_checked() -> None:
    for wrong in ({"attempts": 0}, {"min_wait_s": -1}, {"min_wait_s": 2.0, "max_wait_s": 1.0}):
        with pytest.raises(BadInputError):
            Retry(**wrong)


def test_a_proto_can_say_that_a_method_is_harmless_to_repeat() -> None:
    proto = descriptor_pb2.FileDescriptorProto(name="test/marks.proto", package="test.marks")
    proto.message_type.add(name="M")
    service = proto.service.add(name="S")
    for name in ("Marked", "Unmarked"):
        service.method.add(name=name, input_type=".test.marks.M", output_type=".test.marks.M")
    service.method[0].options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    descriptor_pool.Default().AddSerializedFile(proto.SerializeToString())
    assert new_plan(settings(), "/test.marks.S/Marked").safe
    assert not new_plan(settings(), "/test.marks.S/Unmarked").safe
    assert not new_plan(settings(), "/nobody.knows/It").safe
