"""Session: the calls of one session go to one endpoint."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

from aiflow_router.balancing.least_request import least_request
from aiflow_router.balancing.load import Load
from aiflow_router.balancing.memory import Asked, Memory

# Few enough that a hash and a half is exact as a float: rounded up to 1 its logarithm would be 0.
_HASH_BYTES = 6
_HASHES = 2 ** (8 * _HASH_BYTES)
# Hashing takes 1 us an endpoint, so homes are remembered while the endpoints are the same ones: of
# so many sessions at a time, and not of those whose names somebody made huge.
MAX_HOMES = 1024
MAX_NAME = 256


def draw(name: str) -> float:
    """A number from 0 up to 1 that is the session's own; `session` does not depend on it."""
    digest = hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES, person=b"draw").digest()
    return float(int.from_bytes(digest) / _HASHES)


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
    memory = asked.memory
    if memory.homes_of is not loads:
        if not isinstance(loads, tuple):  # Some are left out for now.
            return _home(name, loads, memory)
        memory.homes_of = loads
        memory.homes.clear()
    home = memory.homes.get(name)
    if home is None:
        home = _home(name, loads, memory)
        if len(name) <= MAX_NAME:
            if len(memory.homes) >= MAX_HOMES:
                memory.homes.clear()
            memory.homes[name] = home
    return home


def _home(name: str, loads: Sequence[Load], memory: Memory) -> Load:
    start = hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES)
    seeds = memory.seeds

    def score(load: Load) -> float:
        seed = seeds.get(load)
        if seed is None:
            seed = seeds[load] = f"\0{load.endpoint.backend}@{load.endpoint.address}".encode()
        digest = start.copy()
        digest.update(seed)
        chance = (int.from_bytes(digest.digest()) + 0.5) / _HASHES
        return -load.endpoint.weight / math.log(chance)

    return max(loads, key=score)
