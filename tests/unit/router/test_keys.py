"""Keys: known by their hash, refused with what to do."""

import contextlib
import gc
import hashlib
import sys
from types import FrameType
from typing import Any

import pytest

from aiflow_router.identity.caller import Caller
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.key import Minted, mint
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


def stored(key: Minted, directory: Directory, *, expires_s: float | None = None) -> Keys:
    caller = Caller(
        name="k", tenant="acme", may=frozenset({"call"}), key=key.key, expires_s=expires_s
    )
    directory.change([(key.sha256, caller)])
    return Keys([], required=True, sources=[directory])


def ran(known: Keys, key: str) -> list[tuple[str, int]]:
    """The lines that were run to know `key`, or not to."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, _event: str, _of: Any) -> Any:
        lines.append((frame.f_code.co_name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # What it runs would be among the lines.
    with contextlib.suppress(errors.AuthenticationError):
        sys.settrace(trace)
        try:
            known.identify(key, "call")
        finally:
            sys.settrace(before)
            gc.enable()
    return lines


def test_how_much_of_a_key_is_right_changes_nothing_of_what_is_done() -> None:
    """So it takes no longer; what is compared are hashes, which nobody can come near to."""
    key = mint()
    known = stored(key, Directory())
    assert known.identify(key.text, "call").key == key.key
    begins, ends = len(key.key) + 1, len(key.text)
    wrong = {
        "nothing": "~" * ends,
        "its id": key.text[:begins] + "~" * (ends - begins),
        "all but its id": "~" * begins + key.text[begins:],
        "half": key.text[: ends // 2] + "~" * (ends - ends // 2),
        "all but its end": key.text[:-1] + "~",
    }
    done = {right: ran(known, sent) for right, sent in wrong.items()}
    assert done["nothing"], "it is seen what is run"
    assert all(lines == done["nothing"] for lines in done.values())
    assert ran(known, key.text) != done["nothing"]


def test_a_key_ends_by_the_clock_also_by_one_that_jumps() -> None:
    clock = [100.0]
    key = mint()
    known = stored(key, Directory(wall=lambda: clock[-1]), expires_s=200.0)
    assert known.identify(key.text, "call").tenant == "acme"
    for ahead_s in (200.0, 1e12):
        clock.append(ahead_s)
        with pytest.raises(errors.AuthenticationError, match="expired at 1970-01-01 00:03:20 UTC"):
            known.identify(key.text, "call")
    clock.append(199.0)  # Set back: it is not 200 yet.
    assert known.identify(key.text, "call").tenant == "acme"
