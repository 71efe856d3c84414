"""API keys as they are made: of one shape, at random, known afterwards by their hash."""

from __future__ import annotations

import hashlib
import re

from aiflow_router.identity.key import digest, mint


def test_a_key_has_its_id_and_a_secret_of_256_bits() -> None:
    made = mint()
    assert re.fullmatch(r"aif_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", made.text)
    assert made.text.startswith(made.key + "_")
    assert made.sha256 == hashlib.sha256(made.text.encode()).digest() == digest(made.text)


def test_no_two_are_alike() -> None:
    assert len({mint().text for _ in range(1000)}) == 1000


def test_a_key_shows_only_its_id() -> None:
    made = mint()
    assert made.key in repr(made)
    assert made.text not in repr(made)
