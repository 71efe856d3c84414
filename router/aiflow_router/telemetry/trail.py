"""What became of the newest calls, kept for a while so that each can be looked up by its id.

Off the hot path: the journal hands over calls in batches, with the lines of the access log that it
has made anyway. Those are kept as they are and searched when somebody asks: 1 ms for 2,500 of them,
where an index by request id would cost every call.

Calls that failed, or that took more than one attempt, are kept in a ring of their own besides, so
that those somebody will ask for outlive a busy minute. A caller who fails quickly and often pushes
the others out of it. A call that ended well and is quiet (a lease renewed) is in neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

NEWEST = 2000
NEWEST_NOTED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An attempt, or a decision, of a call that did not go well at once. Plain values only.

    Attributes:
        at_s: when it began, on the event loop's clock.
        took_s: how long it lasted; 0 for a decision.
        endpoint: who was asked, "model@address"; empty for a decision.
        outcome: the status or what else ended it (UNREACHABLE, PER_TRY_TIMEOUT, ...); empty for a
            decision.
        because: why it was made, or what was decided.
    """

    at_s: float
    took_s: float = 0.0
    endpoint: str = ""
    outcome: str = ""
    because: str = ""


class Noted(Protocol):
    @property
    def notes(self) -> Sequence[Note] | None:
        """None where the first attempt went well."""


class Ended(Protocol):
    """What is kept of a call beside its line in the access log."""

    @property
    def code(self) -> str: ...

    @property
    def queued_s(self) -> float: ...

    @property
    def started_s(self) -> float:
        """When it came, on the event loop's clock."""

    @property
    def call(self) -> Noted | None:
        """None where it was not passed on."""

    @property
    def detour(self) -> Noted | None:
        """What became of it before; None where it was passed on once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A call that has ended.

    Attributes:
        logged: its line in the access log, read.
        queued_s: time it waited at its gate.
        router_s: time in the router alone; None where that cannot be told.
        notes: (seconds since the call came, note), in order.
    """

    logged: dict[str, Any]
    queued_s: float
    router_s: float | None
    notes: tuple[tuple[float, Note], ...]


# Line, queued_s, router_s, and where there are notes when the call came and these: as compact as it
# gets, for there are thousands.
_Kept = tuple[bytes, float, float | None, tuple[float, Sequence[Note]] | None]
# The same of calls that ended together, part by part: a fifth of what it costs one by one.
_Batch = tuple[Sequence[bytes], Sequence[float], Sequence[float | None]]


class Trail:
    """Lives in one event loop.

    Args:
        newest: so many calls are kept at least, and those that ended together with the oldest.
    """

    def __init__(self, *, newest: int = NEWEST, newest_noted: int = NEWEST_NOTED) -> None:
        self._least = newest
        self._held = 0
        self._newest: deque[_Batch] = deque()
        self._noted: deque[_Kept] = deque(maxlen=newest_noted)

    def keep(
        self, ended: Sequence[Ended], router_s: Sequence[float | None], lines: Sequence[bytes]
    ) -> None:
        """Calls in the order in which they ended, each with its time in the router and its line."""
        queued_s = [call.queued_s for call in ended]
        self._newest.append((lines, queued_s, router_s))
        self._held += len(lines)
        while self._held - len(self._newest[0][0]) >= self._least:
            self._held -= len(self._newest.popleft()[0])
        noted = [
            index
            for index, call in enumerate(ended)
            if call.code != "OK" or ((sent := call.call) is not None and sent.notes is not None)
        ]
        for index in noted:
            call = ended[index]
            told = call.call or call.detour
            notes = None if told is None or told.notes is None else (call.started_s, told.notes)
            self._noted.append((lines[index], queued_s[index], router_s[index], notes))

    def find(self, request_id: str) -> list[Trace]:
        """The calls with this id, the newest first: callers choose ids, so there may be several."""
        sought = orjson.dumps(request_id)
        found = {id(kept[0]): kept for kept in self._noted if sought in kept[0]}
        for lines, queued_s, router_s in self._newest:
            for index, line in enumerate(lines):
                if sought in line:
                    found.setdefault(id(line), (line, queued_s[index], router_s[index], None))
        traces = [trace for kept in found.values() if (trace := _read(kept, request_id))]
        return sorted(traces, key=lambda trace: trace.logged["timestamp"], reverse=True)


def _read(kept: _Kept, request_id: str) -> Trace | None:
    """None where the id is in the line, but as something else."""
    line, queued_s, router_s, noted = kept
    logged = orjson.loads(line)
    if logged["request_id"] != request_id:
        return None
    started_s, notes = noted or (0.0, ())
    ordered = sorted(notes, key=lambda note: note.at_s)
    return Trace(
        logged=logged,
        queued_s=queued_s,
        router_s=router_s,
        notes=tuple((note.at_s - started_s, note) for note in ordered),
    )
