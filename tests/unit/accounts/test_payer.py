"""Who pays: the member, the department or the pool, as the tenant says."""

from __future__ import annotations

import pytest

from aiflow_router.accounts.account import Who, member_of, micro, written
from aiflow_router.accounts.payer import Terms, order, payer

ANN = Who(tenant="acme", department="ml", member="ann")
MEMBER, DEPARTMENT, POOL = "member:acme/ann", "department:acme/ml", "pool:acme"


@pytest.mark.parametrize(
    ("terms", "has", "expected"),
    [
        pytest.param(Terms(), [10, 10, 10], MEMBER, id="the member pays first"),
        pytest.param(Terms(), [4, 10, 10], DEPARTMENT, id="the department pays for who has less"),
        pytest.param(Terms(), [4, 4, 10], POOL, id="the pool pays when both have less"),
        pytest.param(Terms(), [4, 4, 4], None, id="nobody pays with others' help"),
        pytest.param(Terms(), [None, 10, 10], DEPARTMENT, id="who was never given any is passed"),
        pytest.param(Terms(), [None, None, 10], POOL, id="the pool pays where it is alone"),
        pytest.param(
            Terms(when_out="refuse"), [4, 10, 10], None, id="an allocation is all one has"
        ),
        pytest.param(
            Terms(when_out="refuse"), [None, 10, 10], DEPARTMENT, id="the department's too"
        ),
        pytest.param(
            Terms(when_out="refuse"), [None, None, 10], None, id="without one there is nothing"
        ),
        pytest.param(Terms(first="pool"), [10, 10, 10], POOL, id="the pool pays first if asked"),
        pytest.param(Terms(first="pool"), [10, 10, 4], MEMBER, id="then its member"),
        pytest.param(Terms(first="pool"), [4, 10, 4], DEPARTMENT, id="then the department"),
        pytest.param(Terms(), [None, None, None], None, id="a tenant without credits cannot pay"),
    ],
)
def test_who_pays_five_credits(terms: Terms, has: list[int | None], expected: str | None) -> None:
    balances = {
        name: left
        for name, left in zip((MEMBER, DEPARTMENT, POOL), has, strict=True)
        if left is not None
    }
    assert payer(order(ANN, terms, balances), balances, 5) == expected


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2", 2_000_000), (0.002, 2_000), ("0.000001", 1), (0.1, 100_000), ("1e3", 1_000_000_000)],
)
def test_credits_are_whole_micro_credits(text: str | float, amount: int) -> None:
    assert micro(text) == amount
    assert micro(written(amount)) == amount


@pytest.mark.parametrize("text", ["0.0000001", "many", "nan", "inf", ""])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="credits"):
        micro(text)


def test_written_is_short() -> None:
    assert [written(amount) for amount in (0, -1_500_000, 250, 7_000_000)] == [
        *("0", "-1.5", "0.00025", "7")
    ]


def test_no_two_accounts_are_called_the_same() -> None:
    assert member_of("a/b", "c") != member_of("a", "b/c")
    assert member_of("a%2Fb", "c") != member_of("a/b", "c")
