"""A route's rule on calls of which another model gets a copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRule:
    """What rpc.shadow copies.

    Attributes:
        to: the model that gets the copies.
        share: of the calls, above 0 and up to 1.
        max_in_flight: copies that may be under way at once; further ones are dropped.
    """

    to: str
    share: float
    max_in_flight: int
