"""What a start takes up again of a journal."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from ergo_capture.journal.payloads import Closing, SessionDescription
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.supervisor import Supervisor


@dataclass(slots=True)
class PendingPublication:
    """A part that ended and whose bundle is not known to be durable."""

    part: int
    first: int
    count: int
    ended: str
    forced: bool
    event_frames: array[int]
    decision_frames: array[int]
    segment: int


@dataclass(slots=True)
class RecoveredSession:
    """A session as the journal has it."""

    number: int
    description: SessionDescription
    #: How it was closed, if it was.
    closing: Closing | None
    #: The part it is in, from 1, and the index of that part's first event.
    part: int
    first: int
    #: The oldest segment with a frame of it, and the oldest that its part needs once those before it are in bundles.
    segment: int
    part_segment: int
    ids: set[str]
    last_event_id: str | None
    accepted: int
    decided: int
    event_frames: array[int]
    decision_frames: array[int]
    event_bytes: int
    supervisor: Supervisor
    #: Attempts that the engine was asked for in this part, by event id, in order, for an engine that counts
    #: them; None for any other.
    attempts: list[tuple[str, int]] | None
    #: Accepted, not decided: what is to be decided next, in order.
    undecided: list[ExternalEvent]
    #: Parts before this one whose bundles are still to be published.
    unpublished: list[PendingPublication]


@dataclass(slots=True)
class Recovery:
    """All that a start has to take up again."""

    sessions: list[RecoveredSession] = field(default_factory=list)
    #: Sessions that are damaged, or whose graph is gone: id (or ``number N`` where that is lost) and what is wrong.
    quarantined: dict[str, str] = field(default_factory=dict)
    #: The oldest segment that a quarantined session needs.
    quarantine_segment: int | None = None
    events: int = 0
    torn_bytes: int = 0
    sealed: bool = True
    next_session: int = 1

    def quarantine(self, session: str, reason: str, segment: int) -> None:
        """Set a session aside, which needs the journal from ``segment`` on."""
        self.quarantined[session] = reason
        known = self.quarantine_segment
        self.quarantine_segment = segment if known is None else min(known, segment)
