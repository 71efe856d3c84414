"""One policy, ready to be put in force."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

from aiflow_router.config.policy import PolicyDocument
from aiflow_router.limits.rule import Rule
from aiflow_router.routing.policy import Policies

Source = Literal["file", "consul", "admin"]

VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """A policy and where it came from.

    Attributes:
        version: the first digits of the SHA-256 of `text`, so routers with the same policy agree.
        source: the kind of place that it came from.
        origin: which one: the file, the key, or who sent it.
        since_s: Unix time from which it is in force.
        text: the effective policy, defaults included, as JSON with sorted keys.
        batched: the models whose batches are filled.
        rules: what its limits say.
    """

    version: str
    source: Source
    origin: str
    since_s: float
    text: str = field(repr=False)
    policies: Policies = field(repr=False)
    batched: frozenset[str] = field(repr=False)
    rules: tuple[Rule, ...] = field(default=(), repr=False)


def edition(document: PolicyDocument, *, source: Source, origin: str, since_s: float) -> Edition:
    """Takes a millisecond for ten routes, so it is not for the event loop where there are many."""
    text = canonical(document)
    version = hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]
    policies = [(route.match, route.policy()) for route in document.routes]
    return Edition(
        version=version,
        source=source,
        origin=origin,
        since_s=since_s,
        text=text,
        policies=Policies(
            version=version,
            models={match.model: policy for match, policy in policies if match.model},
            services={match.service: policy for match, policy in policies if match.service},
        ),
        batched=frozenset(
            route.match.model
            for route in document.routes
            if route.balance == "batch_aware" and route.match.model is not None
        ),
        rules=tuple(limit.rule() for limit in document.limits),
    )


def canonical(document: PolicyDocument) -> str:
    """The same for documents that mean the same, however they are written."""
    plain = document.model_dump(mode="json", exclude_none=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))
