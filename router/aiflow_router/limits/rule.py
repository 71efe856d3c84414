"""A rule: how much of something may be had, and by whom; and what a call asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# What a bucket is for: one for all where there is none of these.
Per = Literal["tenant", "department", "member", "key", "model", "session"]
PERS: tuple[Per, ...] = ("tenant", "department", "member", "key", "model", "session")
# What is counted of a call.
Unit = Literal["calls", "bytes", "pixels", "tokens"]
UNITS: tuple[Unit, ...] = ("calls", "bytes", "pixels", "tokens")
Mode = Literal["enforce", "shadow", "off"]
# What a rule does when the Redis that has its buckets cannot be asked.
Away = Literal["open", "closed", "share"]
# A token bucket; a log of the last `period_s` in which no more than `amount` may lie; calls at the
# same time; a total by calendar day or month, in UTC.
Kind = Literal["rate", "strict", "concurrency", "day", "month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One limit, as the policy has it.

    Attributes:
        name: unique in the policy.
        per: whose each bucket is; empty for one bucket for all.
        model: it counts calls to this model; "" for any. As `service`, of which one may be set.
        amount: of `unit`: in every `period_s`, at the same time, or by day or month.
        burst: what a full bucket holds; only of "rate".
        assume: what a call costs that does not say; None where it must.
        wait: who finds too little waits for it, where the deadline allows.
        queue: calls that may wait for one bucket.
        ages_s: after so long a call that waits is taken for one of the next higher priority.
        lease_s: takes from Redis what it is likely to need in that time; 0 asks for every call.
        holds: the most of it that there ever is at once.
    """

    name: str
    per: tuple[Per, ...] = ()
    model: str = ""
    service: str = ""
    kind: Kind = "rate"
    amount: float
    period_s: float = 1.0
    burst: float = 0.0
    unit: Unit = "calls"
    assume: float | None = None
    mode: Mode = "enforce"
    wait: bool = False
    queue: int = 1024
    ages_s: float = 30.0
    away: Away = "share"
    lease_s: float = 0.0
    rate_per_s: float = field(init=False, repr=False, compare=False)
    holds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate_per_s", self.amount / self.period_s)
        object.__setattr__(self, "holds", self.burst if self.kind == "rate" else self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one call asks of one bucket.

    Attributes:
        bucket: the rule's name and whose it is, as "gpt|acme".
        cost: in the rule's unit; 1 of "concurrency".
    """

    rule: Rule
    bucket: str
    cost: float
