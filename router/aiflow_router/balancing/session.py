"""Session: the calls of one session go to one endpoint."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

from aiflow_router.balancing.least_request import least_request
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked

# Few enough that a hash and a half is exact as a float: rounded up to 1 its logarithm would be 0.
_HASH_BYTES = 6
_HASHES = 2 ** (8 * _HASH_BYTES)


def session(loads: Sequence[Load], rng: random.Random, now_s: float, asked: Asked) -> Load:
    """The endpoint whose hash with the session is best; without a session the least busy.

    Weighted rendezvous hashing: D. Thaler, C. Ravishankar, "A Name-Based Mapping Scheme for
    Rendezvous" (1996); the weights by -weight / ln(hash). Every router comes to the same answer.
    One that joins takes its share and nothing else moves; the sessions of one that is left out
    go to their next best, and back when it is there again.

    Knows nothing of how busy endpoints are: one busy session is not spread.
    """
    name = asked.session
    if not name:
        return least_request(loads, rng, now_s, asked)
    start = hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES)

    def score(load: Load) -> float:
        digest = start.copy()
        digest.update(f"\0{load.endpoint.backend}@{load.endpoint.address}".encode())
        chance = (int.from_bytes(digest.digest()) + 0.5) / _HASHES
        return -load.endpoint.weight / math.log(chance)

    return max(loads, key=score)
