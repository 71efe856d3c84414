"""The cache of one model, which lasts as long as its route's rule: see docs/caching.md."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiflow_router.caching.flight import Flights
from aiflow_router.caching.store import Store
from aiflow_router.forwarding.unary import Answer

Result = Literal["hit", "miss", "joined", "skip", "would_hit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRule:
    """What a route says of answers that may be given again.

    Attributes:
        ttl_s: how long.
        max_bytes: of all answers that are kept.
        shadow: none is; what would have been is counted.
    """

    ttl_s: float
    max_bytes: int
    shadow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer, and who gave it: `served_by` as the caller was told."""

    answer: Answer
    served_by: str

    def size_bytes(self) -> int:
        pairs = (*(self.answer.initial or ()), *(self.answer.trailing or ()))
        return len(self.answer.message) + sum(len(name) + len(value) for name, value in pairs)


class Cache:
    """With `rule.shadow` the store holds keys and the sizes of answers, not the answers.

    Attributes:
        counts: calls by what became of them here.
    """

    def __init__(self, rule: CacheRule, *, clock: Callable[[], float]) -> None:
        self.rule = rule
        self.store: Store[Kept | None] = Store(
            ttl_s=rule.ttl_s, max_bytes=rule.max_bytes, clock=clock
        )
        self.flights: Flights[Kept] = Flights()
        self.counts: Counter[Result] = Counter()

    def keep(self, key: bytes, kept: Kept) -> None:
        value = None if self.rule.shadow else kept
        self.store.put(key, value, size_bytes=kept.size_bytes())


def key_of(request: bytes, *, tenant: str, model: str, version: str) -> bytes:
    """What makes two calls equal: nothing else, and all of it.

    SHA-256, so that nobody can find another request with the same key; most processors have
    instructions for it, with which it is faster than BLAKE2.
    """
    names = repr((tenant, model, version)).encode()
    digest = hashlib.sha256(b"%d:%b" % (len(names), names))
    digest.update(request)
    return digest.digest()
