"""What can only be said of all limits together, and of the router that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiflow_router.config.courses import not_servable
from aiflow_router.config.limit import Limit, LimitMatch
from aiflow_router.config.routes import Path, Problem

# A call is asked for by every limit that matches.
MAX_LIMITS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What of a router's configuration decides which policies it can carry out.

    Attributes:
        workers: processes that share its address.
        redis: buckets are there, so that all processes share them.
        storage: there is a database, which has the credits.
    """

    workers: int = 1
    redis: bool = False
    storage: bool = False


def check(
    limits: Sequence[Limit],
    *,
    ground: Ground,
    servable: frozenset[str] | None = None,
    services: frozenset[str] | None = None,
) -> Iterator[Problem]:
    """Every problem between limits, and with the router; each limit is valid by itself.

    `servable` are the models that may ever be asked for, `services` the services that there can
    be; None where servers register themselves.
    """
    if len(limits) > MAX_LIMITS:
        yield Problem(path=("limits",), why=f"has {len(limits)} limits, more than {MAX_LIMITS}")
    first: dict[str, int] = {}
    for index, limit in enumerate(limits):
        here = ("limits", index)
        before = first.setdefault(limit.name, index)
        if before != index:
            yield Problem(
                path=(*here, "name"),
                why=f'two limits are named "{limit.name}", this one and limits.{before}: each '
                "needs a name of its own",
            )
        if limit.match is not None:
            yield from _never_matched(limit.match, here, servable, services)
        if ground.redis:
            continue
        if ground.workers > 1 and limit.mode == "enforce":
            yield Problem(
                path=here,
                why=f'limit "{limit.name}" cannot be kept by {ground.workers} workers, for each '
                "would grant all of it: set `redis: {url: ...}`, `listen.workers: 1`, or "
                "`mode: shadow`",
            )
        for key, default in (("away", "share"), ("lease", 0.0)):
            if getattr(limit, key) != default:
                yield Problem(
                    path=(*here, key),
                    why="is about Redis, and there is none: set `redis: {url: ...}`, or leave "
                    "it out",
                )


def _never_matched(
    match: LimitMatch, here: Path, servable: frozenset[str] | None, services: frozenset[str] | None
) -> Iterator[Problem]:
    for kind, name, known in (
        ("model", match.model, servable),
        ("service", match.service, services),
    ):
        if name is not None and (why := not_servable(name, known, kind=kind)) is not None:
            yield Problem(path=(*here, "match", kind), why=f"can never match: {why}")
