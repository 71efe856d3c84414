"""The names that somebody may have meant who wrote one that is not known."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

# How many names are read, and how many compared.
MAX_LOOKED_AT = 20_000
MAX_COMPARED = 200
ALIKE = 3


def nearest(name: str, known: Iterable[str]) -> list[str]:
    # Comparing costs the product of the lengths: a huge name is nobody's typing error.
    if len(name) > 256:
        return []
    # And some 10 us a name, all of it while no other call moves on: of many names only those are
    # compared that begin or end as this one does, which is where typing errors mostly are not.
    alike = list(dict.fromkeys(itertools.islice(known, MAX_LOOKED_AT)))
    if len(alike) > MAX_COMPARED:
        start, end = name[:ALIKE], name[-ALIKE:]
        alike = [other for other in alike if other.startswith(start) or other.endswith(end)]
    return difflib.get_close_matches(name, alike[:MAX_COMPARED], n=3, cutoff=0.6)
