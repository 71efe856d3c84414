"""Keys: known by their hash, refused with what to do."""

import hashlib

import pytest

from aiflow_router.identity.keys import KeyRecord, Keys
from aiflow_sdk import errors


def keys(*, required: bool) -> Keys:
    digest = hashlib.sha256(b"secret").hexdigest()
    record = KeyRecord(name="web", tenant="shop", sha256=digest, may=frozenset({"call"}))
    return Keys([record], required=required)


@pytest.mark.parametrize("required", [True, False])
def test_a_known_key_says_the_tenant(required: bool) -> None:
    assert keys(required=required).identify("secret", "call").tenant == "shop"


@pytest.mark.parametrize("required", [True, False])
def test_a_wrong_key_is_refused_also_where_none_is_needed(required: bool) -> None:
    with pytest.raises(errors.AuthenticationError, match="not known") as caught:
        keys(required=required).identify("Secret", "call")
    assert caught.value.reason == "KEY_INVALID"
    assert "Secret" not in str(caught.value)


def test_no_key_is_refused_only_where_one_is_required() -> None:
    assert keys(required=False).identify("", "register").tenant == "anonymous"
    with pytest.raises(errors.AuthenticationError, match="Bearer"):
        keys(required=True).identify("", "call")


def test_a_key_without_the_right_is_refused() -> None:
    with pytest.raises(errors.PermissionDeniedError, match="may not register"):
        keys(required=True).identify("secret", "register")
