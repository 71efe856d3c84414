"""What a call costs in units that only its caller or its server knows: "tokens=512,pixels=1048576".

A caller declares them in `x-aiflow-units`, a server tells the true ones in `x-aiflow-used`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_ITEM = re.compile(r"\s*([a-z][a-z0-9_-]{0,31})=(\d{1,15}(\.\d{1,9})?)\s*")
MAX_CHARACTERS = 512
NONE: Mapping[str, float] = {}

DECLARABLE = frozenset({"tokens", "pixels"})
USABLE = frozenset({"tokens", "pixels", "gpu-ms"})


def read(text: str, known: Collection[str]) -> Mapping[str, float]:
    """The units by name. Raises ValueError, with what is wrong."""
    found: dict[str, float] = {}
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(
                f'"{item.strip()[:64]}" is no number of a unit, 0 or more: write it as tokens=512'
            )
        name = match[1]
        if name not in known:
            raise ValueError(f'"{name}" is not one of {", ".join(sorted(known))}')
        if name in found:
            raise ValueError(f'"{name}" is there twice')
        found[name] = float(match[2])
    return found
