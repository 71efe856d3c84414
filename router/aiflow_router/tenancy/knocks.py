"""How often somebody without a key may ask for something: a token bucket an address.

Codes and secrets are too long to be guessed; this keeps a guesser from keeping the database busy.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import unquote

from aiflow_sdk import errors

RATE_PER_S = 0.5
BURST = 20.0
# Of all addresses together.
ALL_RATE_PER_S = 20.0
ALL_BURST = 100.0
MAX_ADDRESSES = 10_000
_V6_NETWORK_BITS = 64


class Knocks:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Full at a time that may lie ahead: a bucket with n tokens missing is full in n / rate.
        self._full_s: OrderedDict[str, float] = OrderedDict()
        self._all_full_s = clock()

    def check(self, peer: str) -> None:
        """Counts a try from `peer`, as gRPC writes it. Raises RateLimitedError."""
        now_s, who = self._clock(), host(peer)
        own_s = max(self._full_s.get(who, now_s), now_s)
        all_s = max(self._all_full_s, now_s)
        wait_s = max(
            own_s + 1 / RATE_PER_S - now_s - BURST / RATE_PER_S,
            all_s + 1 / ALL_RATE_PER_S - now_s - ALL_BURST / ALL_RATE_PER_S,
        )
        if wait_s > 0:
            raise errors.RateLimitedError(
                f"too many tries without a key: try again in {wait_s:.0f} s", retry_after_s=wait_s
            )
        self._all_full_s = all_s + 1 / ALL_RATE_PER_S
        self._full_s[who] = own_s + 1 / RATE_PER_S
        self._full_s.move_to_end(who)
        if len(self._full_s) > MAX_ADDRESSES:
            self._full_s.popitem(last=False)


def host(peer: str) -> str:
    """Who is one for the count: an IPv4 address, a network of IPv6, all of a Unix socket."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    address, _, _ = rest.rpartition(":")
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return rest
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, _V6_NETWORK_BITS), strict=False))
    return str(found)
