"""Errors survive the way over the wire."""

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from aiflow_sdk import errors, status

ALL_CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.AiflowError)
]


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_every_error_arrives_as_what_was_sent(cls: type[errors.AiflowError]) -> None:
    sent = cls("what to do next", retry_after_s=1.5, metadata={"model": "detector"})
    got = status.from_parts(code=sent.code, message=sent.message, trailers=status.to_trailers(sent))
    assert (got.code, got.reason, got.message) == (sent.code, sent.reason, sent.message)
    assert got.retry_after_s == 1.5
    assert got.metadata == {"model": "detector"}
    if cls is not errors.AiflowError:
        assert isinstance(got, cls)


def test_a_call_over_a_limit_names_the_rule_and_whose() -> None:
    sent = errors.RateLimitedError(
        "too often", retry_after_s=2.0, metadata={"rule": "gpt", "subject": "gpt|acme"}
    )
    quota = error_details_pb2.QuotaFailure()
    assert any(packed.Unpack(quota) for packed in status.to_status(sent).details)
    violations = [(one.subject, one.description) for one in quota.violations]
    assert violations == [("gpt|acme", "too often")]
    got = status.from_parts(code=sent.code, message=sent.message, trailers=status.to_trailers(sent))
    assert isinstance(got, errors.RateLimitedError)
    assert (got.rule, got.subject, got.retry_after_s) == ("gpt", "gpt|acme", 2.0)


def test_bad_input_names_the_fields() -> None:
    sent = errors.BadInputError("two fields are wrong", violations={"title": "too long"})
    details = status.to_status(sent).details
    bad = error_details_pb2.BadRequest()
    assert any(packed.Unpack(bad) for packed in details)
    assert [(v.field, v.description) for v in bad.field_violations] == [("title", "too long")]


@pytest.mark.parametrize(
    ("code", "message", "cls"),
    [
        (
            "RESOURCE_EXHAUSTED",
            "Received message larger than max (9 vs. 4)",
            errors.MessageTooLargeError,
        ),
        ("RESOURCE_EXHAUSTED", "out of memory", errors.RateLimitedError),
        ("DATA_LOSS", "disk", errors.BackendError),
    ],
)
def test_a_status_without_details_is_told_by_its_code(
    code: str, message: str, cls: type[errors.AiflowError]
) -> None:
    assert type(status.from_parts(code=code, message=message, trailers=())) is cls


@pytest.mark.parametrize(
    ("what", "pushback", "retry_after_s"),
    [
        ("a wait in milliseconds", "1500", 1.5),
        ("at once", "0", 0.0),
        ("negative means never", "-1", status.NEVER_S),
        ("not a number means never, as gRFC A6 says", "soon", status.NEVER_S),
    ],
)
def test_push_back_is_read_as_grpc_clients_read_it(
    what: str, pushback: str, retry_after_s: float
) -> None:
    got = status.from_parts(
        code="UNAVAILABLE", message="", trailers=[("grpc-retry-pushback-ms", pushback)]
    )
    assert got.retry_after_s == retry_after_s


def test_never_is_sent_as_push_back_alone() -> None:
    sent = errors.UnavailableError("no", reason="DEADLINE_UNREACHABLE", retry_after_s=-1)
    trailers = dict(status.to_trailers(sent))
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    assert "retry-after" not in trailers
    retry = error_details_pb2.RetryInfo()
    assert not any(packed.Unpack(retry) for packed in status.to_status(sent).details)


@given(st.binary())
def test_details_that_are_no_status_do_not_hide_the_code(details: bytes) -> None:
    trailers = [(status.DETAILS_KEY, details)]
    got = status.from_parts(code="INTERNAL", message="boom", trailers=trailers)
    assert (got.code, got.message) == ("INTERNAL", "boom")
