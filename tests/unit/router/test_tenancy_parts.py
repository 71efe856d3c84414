"""Small parts of tenancy: what may be written, codes, and how often a stranger may knock."""

from __future__ import annotations

import pytest

from aiflow_router.tenancy import codes
from aiflow_router.tenancy.fields import Fields, not_found
from aiflow_router.tenancy.knocks import ALL_BURST, BURST, MAX_ADDRESSES, Knocks, host
from aiflow_sdk import errors


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("acme", True),
        ("a.b_c@d-e+9", True),
        ("", False),
        ("-acme", False),
        ("two words", False),
        ("slash/ed", False),
        ("new\nline", False),
        ("nul\0", False),
        ("ümlaut", False),
        ("x" * 64, True),
        ("x" * 65, False),
        ("acme\n", False),
    ],
)
def test_names_are_short_and_plain(name: str, good: bool) -> None:
    fields = Fields()
    fields.name("member", name)
    if good:
        fields.check()
    else:
        with pytest.raises(errors.BadInputError, match="must be 1 to 64"):
            fields.check()


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_absurd_weights_are_refused(weight: float) -> None:
    fields = Fields()
    fields.weight(weight)
    with pytest.raises(errors.BadInputError, match="weight must be"):
        fields.check()


def test_all_problems_are_told_at_once_with_the_nearest_choice() -> None:
    fields = Fields()
    fields.tenant("anonymous")
    fields.role("tenant-admin")
    fields.may(["cal"])
    fields.patterns("methods", ["aiflow.imaging.v1.ImagingService/*"])
    with pytest.raises(errors.BadInputError) as caught:
        fields.check()
    wrong = caught.value.violations
    assert set(wrong) == {"tenant", "role", "may", "methods"}
    assert "did you mean tenant_admin or" in wrong["role"]
    assert "did you mean call?" in wrong["may"]
    assert "/aiflow.imaging.v1.ImagingService/*" in wrong["methods"]


def test_what_is_not_there_is_named_shortly_with_the_nearest() -> None:
    found = not_found("tenant", "acmee", ["acme", "rival"])
    assert found.reason == "TENANT_NOT_FOUND"
    assert "did you mean acme?" in found.message
    assert len(not_found("tenant", "x" * 10_000, ["acme"]).message) < 200


def test_codes_are_long_and_shown_by_their_beginning() -> None:
    invitation, application = codes.invitation(), codes.application()
    assert invitation.secret.startswith(f"{invitation.id}_")
    assert len(invitation.secret) == len("inv_12345678_") + 22, "128 bits"
    assert len(application.secret) == len("app_12345678_") + 43, "256 bits"
    assert codes.digest(invitation.secret) == invitation.sha256
    assert invitation.secret not in repr(invitation)
    assert codes.plausible(invitation.secret)
    assert not codes.plausible("nonsense")
    assert not codes.plausible("x" * 1_000_000)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refused(knocks: Knocks, peer: str) -> bool:
    try:
        knocks.check(peer)
    except errors.RateLimitedError as error:
        return error.retry_after_s is not None and error.retry_after_s > 0
    return False


def test_an_address_has_its_burst_then_one_every_two_seconds() -> None:
    clock = Clock()
    knocks = Knocks(clock=clock)
    assert [refused(knocks, f"ipv4:10.0.0.1:{n}") for n in range(int(BURST) + 1)] == [
        *[False] * int(BURST),
        True,
    ]
    assert not refused(knocks, "ipv4:10.0.0.2:1"), "another address is not held back"
    clock.now_s += 1.9
    assert refused(knocks, "ipv4:10.0.0.1:1")
    clock.now_s += 0.2
    assert not refused(knocks, "ipv4:10.0.0.1:1")


def test_all_addresses_together_have_a_limit_and_few_are_remembered() -> None:
    clock = Clock()
    knocks = Knocks(clock=clock)
    peers = [f"ipv4:10.{n // 65536}.{n // 256 % 256}.{n % 256}:1" for n in range(MAX_ADDRESSES + 9)]
    assert sum(not refused(knocks, peer) for peer in peers) == ALL_BURST
    for peer in peers:
        clock.now_s += 1
        knocks.check(peer)
    assert len(knocks._full_s) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:[2001:db8::1:2]:50000", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::/64"),
        ("ipv6:[::ffff:10.0.0.1]:50000", "10.0.0.1"),
        ("ipv6:[fe80::1%eth0]:50000", "fe80::/64"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_a_peer_counts_as_its_network(peer: str, who: str) -> None:
    assert host(peer) == who
