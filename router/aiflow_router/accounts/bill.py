"""What one call holds, and by what its cost is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiflow_router.accounts.ledger import Taken
from aiflow_router.routing.price import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """`declared` is what its caller said that it may use, by unit."""

    taken: Taken
    price: Price
    declared: Mapping[str, float]
