"""Accounts and amounts, as the ledger writes them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

# An amount of credits is a whole number of these.
MICRO = 1_000_000
# Of one grant and of all that there are, in micro-credits: the database counts with 64 bits.
MOST = 1_000_000_000 * MICRO
MOST_ISSUED = 4_000 * MOST
# Where all that was ever given out is from; it alone is below 0.
ISSUED = "issued"


def pool(tenant: str) -> str:
    return f"pool:{_plain(tenant)}"


def department_of(tenant: str, department: str) -> str:
    return f"department:{_plain(tenant)}/{department}"


def member_of(tenant: str, member: str) -> str:
    return f"member:{_plain(tenant)}/{member}"


def held(tenant: str) -> str:
    """What calls that have not ended may cost."""
    return f"held:{_plain(tenant)}"


def spent(tenant: str) -> str:
    return f"spent:{_plain(tenant)}"


def _plain(tenant: str) -> str:
    """So that no two accounts are called the same."""
    return tenant.replace("%", "%25").replace("/", "%2F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who calls, and so may have to pay.

    Attributes:
        department: empty for none, as is `member`.
    """

    tenant: str
    department: str = ""
    member: str = ""

    def own(self) -> tuple[str, ...]:
        """The accounts that are theirs alone, the nearest first."""
        found = []
        if self.member:
            found.append(member_of(self.tenant, self.member))
        if self.department:
            found.append(department_of(self.tenant, self.department))
        return tuple(found)

    def accounts(self) -> frozenset[str]:
        """All that a call of theirs can move credits between."""
        tenant = self.tenant
        return frozenset((*self.own(), pool(tenant), held(tenant), spent(tenant)))


def micro(amount: str | float) -> int:
    """Credits as micro-credits, exactly. Raises ValueError."""
    try:
        found = Decimal(str(amount)) * MICRO
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise ValueError(f'"{amount}" is no amount of credits: write a number such as 2 or 0.25')
    if found != found.to_integral_value():
        raise ValueError(f"{amount} has more than 6 decimals: that is finer than credits are")
    return int(found)


def written(amount: int) -> str:
    """Micro-credits as credits: "2.5"."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), MICRO)
    return f"{sign}{whole}" + (f".{rest:06}".rstrip("0") if rest else "")
