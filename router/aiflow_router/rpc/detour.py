"""What became of a call at the models that it fell back from."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiflow_router.forwarding.call import Call
from aiflow_router.telemetry.trail import Note


@dataclass(slots=True, kw_only=True)
class Detour:
    """Filled in by `chain`; the call that goes on is counted by itself.

    Attributes:
        reasons: why it fell back, each time that it did.
        attempts: endpoints tried before.
        backend_s: time spent waiting for backends before.
        notes: of the whole call, whose later attempts note there too.
    """

    reasons: list[str] = field(default_factory=list)
    attempts: int = 0
    backend_s: float = 0.0
    notes: list[Note] = field(default_factory=list)

    def left(self, call: Call | None, reason: str) -> None:
        """The call goes on from there; None where nobody was asked."""
        self.reasons.append(reason)
        if call is not None:
            self.attempts += call.attempts
            self.backend_s += call.backend_s
            if call.notes is not None and call.notes is not self.notes:
                self.notes += call.notes
