"""What is kept, within a number of bytes and a time; who was asked for longest ago goes first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# One value must not push out all others.
LARGEST_SHARE = 1 / 8
# What a value costs beside its own bytes: its key, its place in the table, the objects around it.
ENTRY_BYTES = 512


class Store(Generic[T]):
    """Values by key.

    Attributes:
        size_bytes: of all that is in it; never above `max_bytes`.
        evicted: values that went, by reason: "expired", or "full" for want of room.
    """

    def __init__(self, *, ttl_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.evicted: Counter[str] = Counter()
        self._ttl_s = ttl_s
        self._clock = clock
        # Value, size and when it was put, by key; the one asked for longest ago is first.
        self._entries: OrderedDict[bytes, tuple[T, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[T, float] | None:
        """The value and its age in seconds; None where there is none, or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = self._clock() - entry[2]
        if age_s >= self._ttl_s:
            self._drop(key)
            self.evicted["expired"] += 1
            return None
        self._entries.move_to_end(key)
        return entry[0], age_s

    def put(self, key: bytes, value: T, *, size_bytes: int) -> bool:
        """Whether it is kept, in place of any older one; not where it is too large."""
        self._drop(key)
        size_bytes += ENTRY_BYTES
        if size_bytes > self.max_bytes * LARGEST_SHARE:
            return False
        while self.size_bytes + size_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted["full"] += 1
        self._entries[key] = (value, size_bytes, self._clock())
        self.size_bytes += size_bytes
        return True

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry[1]
