"""How calls to models and services are treated, as `aiflow.yaml` or an operator says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiflow_router.caching.cache import CacheRule
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.limits.overload import DEFAULT, Overload
from aiflow_router.routing.fallback import Fallback
from aiflow_router.routing.price import Price
from aiflow_router.routing.shadow import ShadowRule
from aiflow_router.routing.split import Split

Kind = Literal["model", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How calls to one model or service are treated.

    Attributes:
        balance: a name in PICKS.
        hedge_after_s: where it is hedged: None means after the 95th percentile.
        hedge_shadow: where it is hedged: that is counted and not done.
        latency_aim_s: for `batch_aware`; None with any other.
        split: of a model's route; None where it asks for none, as with `fallback`.
        cache: None where answers are not to be given again.
        shadow: None where no other model gets copies of its calls.
        price: None where calls are free.
    """

    timeout_s: float = 15.0
    balance: str = "least_request"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    hedged: bool = False
    hedge_after_s: float | None = None
    hedge_shadow: bool = False
    overload: Overload = DEFAULT
    latency_aim_s: float | None = None
    split: Split | None = None
    fallback: Fallback | None = None
    cache: CacheRule | None = None
    shadow: ShadowRule | None = None
    price: Price | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """How calls to every model and service are treated; those not listed: by the default.

    Attributes:
        version: told with every reply.
        models: by name, as are `services`.
    """

    version: str = ""
    models: Mapping[str, Policy] = field(default_factory=dict)
    services: Mapping[str, Policy] = field(default_factory=dict)
