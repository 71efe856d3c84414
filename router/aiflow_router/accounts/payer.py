"""Who pays for a call.

One account pays the whole of it, so that every bill names one: what is left in an account that is
too little for this call is there for a smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aiflow_router.accounts import account
from aiflow_router.accounts.account import Who

First = Literal["member", "pool"]
WhenOut = Literal["refuse", "pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a tenant says of it.

    Attributes:
        first: the member, then the department, where they have an account; or the tenant's pool.
        when_out: what becomes of a call for which the first cannot pay: it is refused, or the
            pool pays. Where the pool is first there is nothing to choose: the others follow.
    """

    first: First = "member"
    when_out: WhenOut = "pool"


def order(who: Who, terms: Terms, exists: Mapping[str, object]) -> tuple[str, ...]:
    """The accounts that are asked to pay, one after the other.

    With `refuse` that is the nearest one alone: to be given an allocation is to have no more.
    """
    own = tuple(one for one in who.own() if one in exists)
    pool = tuple(one for one in (account.pool(who.tenant),) if one in exists)
    if terms.first == "pool":
        return (*pool, *own)
    return (*own, *pool) if terms.when_out == "pool" else own[:1]


def payer(asked: tuple[str, ...], balances: Mapping[str, int], amount: int) -> str | None:
    """The first that has all of `amount`; None where none has."""
    return next((one for one in asked if balances[one] >= amount), None)
