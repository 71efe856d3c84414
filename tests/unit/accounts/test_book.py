"""Whatever is done in whatever order: nothing is made or lost, nobody pays twice or owes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiflow_router.accounts.account import ISSUED, MOST, MOST_ISSUED, Who
from aiflow_router.accounts.alert import Level, level
from aiflow_router.accounts.book import Account, Book
from aiflow_router.accounts.operation import (
    Allocate,
    Done,
    Hold,
    Outcome,
    Refused,
    Release,
    Settle,
    TopUp,
)
from aiflow_router.accounts.payer import Terms

ANN = Who(tenant="acme", department="ml", member="ann")
BOB = Who(tenant="acme", member="bob")
NAMES = (ISSUED, *sorted(ANN.accounts() | BOB.accounts()))
IDS = st.sampled_from(["r1", "r2", "r3"])
TOKENS = st.sampled_from(["first", "second"])
AMOUNTS = st.integers(1, 40)


def book(terms: Terms | None = None, **balances: int) -> Book:
    accounts = {name: Account(tenant="" if name == ISSUED else "acme") for name in NAMES}
    for name, balance in balances.items():
        found = accounts[name.replace("_", ":", 1).replace("_", "/")]
        found.balance = found.full = balance
        accounts[ISSUED].balance -= balance
    return Book(now_s=1000.0, accounts=accounts, terms={"acme": terms or Terms()})


def hold(amount: int = 5, *, request_id: str = "r1", token: str = "t", who: Who = ANN) -> Hold:
    return Hold(who=who, request_id=request_id, token=token, amount=amount, expires_s=2000.0)


def settle(amount: int, *, token: str = "t") -> Settle:
    return Settle(who=ANN, request_id="r1", token=token, amount=amount)


def release(*, token: str = "t", refund: bool = False, expired: bool = False) -> Release:
    return Release(who=ANN, request_id="r1", token=token, refund=refund, expired=expired)


def why(outcome: Outcome) -> str:
    return outcome.why if isinstance(outcome, Refused) else ""


def test_a_call_pays_what_it_cost_and_gets_the_rest_back() -> None:
    found = book(pool_acme=10)
    assert found.apply(hold(5)) == Done(payer="pool:acme", amount=5)
    assert found.accounts["pool:acme"].balance == 5
    assert found.apply(settle(3)) == Done(payer="pool:acme", amount=3)
    assert found.accounts["pool:acme"].balance == 7
    assert found.accounts["held:acme"].balance == 0
    assert found.accounts["spent:acme"].balance == 3


@pytest.mark.parametrize(
    ("before", "operation", "outcome", "left"),
    [
        pytest.param([hold()], hold(), Done(payer="pool:acme", amount=5, again=True), 5,
                     id="a hold that was written though nobody heard is not held twice"),
        pytest.param([hold()], hold(token="u"), Refused(why="duplicate", subject="held"), 5,
                     id="an id under way is a duplicate"),
        pytest.param([hold(), settle(5)], hold(token="u"),
                     Refused(why="duplicate", subject="settled"), 5,
                     id="an id that was paid is a duplicate"),
        pytest.param([hold(), release()], hold(token="u"), Done(payer="pool:acme", amount=5), 5,
                     id="an id that was given back may be used again"),
        pytest.param([hold()], settle(9), Done(payer="pool:acme", amount=5), 5,
                     id="a call pays at most what was held"),
        pytest.param([hold()], settle(0), Done(payer="pool:acme", amount=0), 10,
                     id="a call that cost nothing pays nothing"),
        pytest.param([hold(), settle(3)], settle(3), Done(payer="pool:acme", amount=3, again=True),
                     7, id="what is settled twice is paid once"),
        pytest.param([hold(), settle(3)], release(), Done(again=True), 7,
                     id="what is paid is not given back by who comes late"),
        pytest.param([hold(), settle(3)], release(refund=True), Done(payer="pool:acme", amount=3),
                     10, id="an answer that was not given is paid back"),
        pytest.param([hold(), release(), hold(token="u")], release(), Done(again=True), 5,
                     id="who is late gives back no hold but its own"),
        pytest.param([hold(), release(), hold(token="u")], settle(5), Refused(why="lost"), 5,
                     id="who is late settles no hold but its own"),
        pytest.param([hold(), release(expired=True)], settle(3), Done(payer="pool:acme", amount=3),
                     7, id="a call that outlived its hold pays all the same"),
        pytest.param([], settle(3), Refused(why="lost"), 10, id="what was never held is not paid"),
        pytest.param([], release(), Done(again=True), 10, id="nor given back"),
        pytest.param([], hold(11),
                     Refused(why="out", subject="member:acme/ann",
                             balances={"member:acme/ann": 0, "department:acme/ml": 0,
                                       "pool:acme": 10}), 10,
                     id="who has too little is refused"),
    ],
)  # fmt: skip
def test_operations(
    before: list[Hold | Settle | Release],
    operation: Hold | Settle | Release,
    outcome: Outcome,
    left: int,
) -> None:
    found = book(pool_acme=10)
    for one in before:
        assert isinstance(found.apply(one), Done)
    assert found.apply(operation) == outcome
    assert found.accounts["pool:acme"].balance == left


def test_a_grant_is_done_once_under_its_reference() -> None:
    found = book()
    given = TopUp(tenant="acme", amount=7, actor="root", note="", reference="order 1")
    other = TopUp(tenant="acme", amount=8, actor="root", note="", reference="order 1")
    assert found.apply(given) == Done(amount=7)
    assert found.apply(given) == Done(amount=7, again=True)
    assert why(found.apply(other)) == "other"
    assert found.accounts["pool:acme"].balance == 7
    assert len(found.transfers) == 1


def test_more_than_can_be_counted_is_not_given() -> None:
    found = book()
    found.accounts[ISSUED].balance = MOST - MOST_ISSUED
    for reference, amount, expected in (("a", MOST, ""), ("b", 1, "much")):
        given = TopUp(tenant="acme", amount=amount, actor="", note="", reference=reference)
        assert why(found.apply(given)) == expected


def test_alerts_tell_each_level_once_until_more_is_given() -> None:
    found = book(pool_acme=100)
    for number, amount in enumerate((89, 1, 5, 5)):
        assert why(found.apply(hold(amount, request_id=f"r{number}"))) == ""
    assert why(found.apply(hold(1, request_id="more"))) == "out"
    assert [(alert.level, alert.balance) for alert in found.alerts] == [("low", 10), ("none", 0)]
    found.apply(TopUp(tenant="acme", amount=20, actor="", note="", reference="a"))
    found.apply(hold(19, request_id="again"))
    assert [(alert.level, alert.balance) for alert in found.alerts[2:]] == [("low", 1)]


def test_an_account_with_too_little_for_a_call_is_told_as_out() -> None:
    found = book(pool_acme=100)
    assert why(found.apply(hold(101, who=BOB))) == "out"
    assert [alert.level for alert in found.alerts] == []  # The member's own, which never had any.
    found = book(member_acme_ann=100)
    assert why(found.apply(hold(101))) == "out"
    assert [(alert.account, alert.level) for alert in found.alerts] == [("member:acme/ann", "none")]


@pytest.mark.parametrize(
    ("balance", "full", "expected"),
    [
        pytest.param(11, 100, Level.ENOUGH, id="more than a tenth is enough"),
        pytest.param(10, 100, Level.LOW, id="a tenth is low"),
        pytest.param(0, 100, Level.NONE, id="nothing is none"),
        pytest.param(0, 0, Level.ENOUGH, id="what was never given does not run out"),
    ],
)
def test_levels(balance: int, full: int, expected: Level) -> None:
    assert level(balance, full) is expected


class Anything(RuleBasedStateMachine):
    """What callers were told is counted beside the ledger, and must come to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.book = book()
        self.given = 0
        self.paid: Counter[tuple[str, str]] = Counter()
        self.references = 0

    def reference(self) -> str:
        self.references += 1
        return str(self.references)

    @rule(amount=AMOUNTS)
    def tops_up(self, amount: int) -> None:
        done = self.book.apply(
            TopUp(tenant="acme", amount=amount, actor="", note="", reference=self.reference())
        )
        assert isinstance(done, Done)
        self.given += amount

    @rule(
        amount=AMOUNTS,
        source=st.sampled_from(["pool:acme", "department:acme/ml"]),
        to=st.sampled_from(["department:acme/ml", "member:acme/ann", "member:acme/bob"]),
    )
    def allocates(self, amount: int, source: str, to: str) -> None:
        if source != to:
            self.book.apply(
                Allocate(
                    tenant="acme",
                    source=source,
                    target=to,
                    amount=amount,
                    actor="",
                    note="",
                    reference=self.reference(),
                )
            )

    @rule(
        amount=AMOUNTS,
        request_id=IDS,
        token=TOKENS,
        who=st.sampled_from([ANN, BOB]),
        terms=st.builds(
            Terms,
            first=st.sampled_from(["member", "pool"]),
            when_out=st.sampled_from(["refuse", "pool"]),
        ),
    )
    def holds(self, amount: int, request_id: str, token: str, who: Who, terms: Terms) -> None:
        self.book.terms = {"acme": terms}
        self.book.apply(hold(amount, request_id=request_id, token=token, who=who))

    @rule(amount=st.integers(-5, 60), request_id=IDS, token=TOKENS)
    def settles(self, amount: int, request_id: str, token: str) -> None:
        outcome = self.book.apply(
            Settle(who=ANN, request_id=request_id, token=token, amount=amount)
        )
        if isinstance(outcome, Done) and not outcome.again:
            assert 0 <= outcome.amount <= max(0, amount)
            self.paid[request_id, token] += outcome.amount

    @rule(request_id=IDS, token=TOKENS, refund=st.booleans())
    def releases(self, request_id: str, token: str, refund: bool) -> None:
        outcome = self.book.apply(
            Release(who=ANN, request_id=request_id, token=token, refund=refund)
        )
        if isinstance(outcome, Done) and not outcome.again:
            self.paid[request_id, token] -= min(self.paid[request_id, token], outcome.amount)

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        accounts = self.book.accounts
        assert sum(one.balance for one in accounts.values()) == 0
        assert accounts[ISSUED].balance == -self.given
        assert all(one.balance >= 0 for name, one in accounts.items() if name != ISSUED)
        assert all(sum(one.entries.values()) == 0 for one in self.book.transfers)

    @invariant()
    def what_is_held_and_spent_is_what_calls_hold_and_paid(self) -> None:
        holds = self.book.holds.values()
        held = sum(one.amount for one in holds if one.state == "held")
        assert self.book.accounts["held:acme"].balance == held
        assert self.book.accounts["spent:acme"].balance == self.paid.total()


TestAnything = Anything.TestCase
