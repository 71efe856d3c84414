"""The last view of a catalog on disk, from which a router starts when its source is away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.fields import endpoint_problem
from aiflow_router.catalog.snapshot import Entry

FORMAT = 1


class LastKnownError(Exception):
    """The file cannot be used; says why and what to do."""


def save(
    path: Path,
    entries: Iterable[Entry],
    *,
    source: str,
    clock: Callable[[], float] = time.time,
) -> None:
    """Replaces the file in one step: a reader sees the old view or the new one.

    `source` names where the view comes from. Raises LastKnownError.
    """
    document = {
        "format": FORMAT,
        "source": source,
        "saved_at_s": clock(),
        "endpoints": [_plain(entry) for entry in entries],
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise LastKnownError(
            f"the last view cannot be written to {path}: {error.strerror}; a restart while "
            "discovery is away would begin with nothing: make the folder writable"
        ) from None


def load(path: Path, *, source: str) -> tuple[tuple[Entry, ...], float]:
    """The entries, and when they were saved (seconds since 1970). Raises LastKnownError."""
    try:
        document = orjson.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise LastKnownError(f"{path} has format {document['format']}, not {FORMAT}: remove it")
        if document["source"] != source:
            raise LastKnownError(
                f"{path} is the view of {document['source']}, and this router asks {source}: name "
                "another file in last_known"
            )
        entries = tuple(_entry(item) for item in document["endpoints"])
        return entries, float(document["saved_at_s"])
    except OSError as error:
        raise LastKnownError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise LastKnownError(f"{path} is damaged, remove it: {error!r}") from None


def _plain(entry: Entry) -> dict[str, Any]:
    endpoint = entry.endpoint
    return {
        "backend": endpoint.backend,
        "address": endpoint.address,
        "protocol": endpoint.protocol.name.lower(),
        "models": endpoint.models,
        "services": endpoint.services,
        "weight": endpoint.weight,
        "zone": endpoint.zone,
        "version": endpoint.version,
        "device": endpoint.device,
        "state": entry.state.name.lower(),
    }


def _entry(item: Mapping[str, Any]) -> Entry:
    endpoint = Endpoint(
        backend=item["backend"],
        address=item["address"],
        protocol=Protocol[item["protocol"].upper()],
        models=tuple(item["models"]),
        services=tuple(item["services"]),
        weight=item["weight"],
        zone=item["zone"],
        version=item["version"],
        device=item["device"],
    )
    if wrong := endpoint_problem(endpoint):
        raise ValueError(wrong)
    return Entry(endpoint=endpoint, state=State[item["state"].upper()])
