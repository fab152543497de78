"""The report of a scan of the journal: the frames of each session, the torn end and the damage."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ergo_capture.journal.frame import FrameKind, Header, Position

#: More than the number of damages: set where no later damage can concern the session.
_ALL_PROVED: Final = 1 << 62


class Verdict(Enum):
    """The verdict on the end of a journal, or on a stretch that is not whole frames."""

    #: The end: the journal was closed in order.
    SEALED = "sealed"
    #: The end: a whole frame other than SEAL. The daemon was killed between two commits, or is running.
    UNSEALED = "unsealed"
    #: The end: a batch that was never synced, so nothing of it was acknowledged.
    TORN = "torn"
    #: A stretch that held acknowledged data.
    DAMAGED = "damaged"
    #: A stretch after a SEAL frame, where nothing is ever acknowledged.
    STRAY = "stray"


@dataclass(slots=True)
class Damage:
    """A stretch of a segment that is not what the daemon wrote there, or where something is missing."""

    segment: int
    offset: int
    #: Bytes up to the next frame, or to the end of the segment; 0 where bytes are missing altogether.
    length: int
    reason: str
    #: Numbers of the sessions concerned: the session in the frame's header if that is good, else every session for
    #: which it is not proved that none of its frames is missing.
    sessions: list[int] = field(default_factory=list)
    verdict: Verdict = Verdict.DAMAGED

    def __str__(self) -> str:
        return f"segment {self.segment}, offset {self.offset}: {self.reason} ({self.length} bytes)"


@dataclass(slots=True)
class TornEnd:
    """The torn end of the journal."""

    segment: int
    offset: int
    #: Bytes from there to the end of what was written.
    length: int
    #: Whole frames among them, of the batch that was never synced.
    frames: int
    #: The defect of the first frame that is not whole.
    reason: str


@dataclass(slots=True)
class Proof:
    """A PROOF frame that must be written before a torn end is cut off after damage.

    Without it the next start would take the damage for a torn end.
    """

    segment: int
    offset: int
    batch: int


@dataclass(slots=True)
class SessionFrames:
    """The positions of one session's frames, in order."""

    number: int
    open: Position | None = None
    #: Packed positions.
    events: array[int] = field(default_factory=lambda: array("Q"))
    decisions: array[int] = field(default_factory=lambda: array("Q"))
    rotations: list[Position] = field(default_factory=list)
    close: Position | None = None
    published: list[Position] = field(default_factory=list)
    losses: list[Position] = field(default_factory=list)
    #: The last OUTCOME frame and the ACK frames after it, and the index of its event; empty once that is decided.
    outcome: list[Position] = field(default_factory=list)
    outcome_index: int = 0
    #: Whether a PUBLISHED frame says that the last bundle is durable, or an ASIDE frame that the session is set aside.
    done: bool = False
    #: Whether it was quarantined and is kept elsewhere.
    aside: bool = False
    #: Index after the last event and the last decision; None before the first.
    next_event: int | None = None
    next_decision: int | None = None
    #: The damage of the session, in words; None for none.
    damage: str | None = None
    #: How many of ``ScanReport.unattributed`` lie before the last frame that proved that no event (no decision) is
    #: missing.
    events_proved: int = 0
    decisions_proved: int = 0

    def add(self, header: Header, position: Position, unattributed: int) -> None:
        """Add the next frame of the session; a gap before its index is damage (rule 3 of ``verdict.py``).

        Args:
            header: the frame's header.
            position: where the frame is.
            unattributed: unattributed damages before the frame.
        """
        kind = header.kind
        if kind == FrameKind.EVENTS:
            self._expect("event", self.next_event, header.first)
            self.next_event = header.first + header.count
            self.events_proved = unattributed
            self.events.append(position.pack())
        elif kind == FrameKind.DECISIONS:
            self._expect("decision", self.next_decision, header.first)
            self.next_decision = header.first + header.count
            self.decisions_proved = unattributed
            self.decisions.append(position.pack())
            if self.outcome and self.outcome_index < self.next_decision:
                self.outcome.clear()
        elif kind == FrameKind.OUTCOME:
            self.outcome, self.outcome_index = [position], header.first
        elif kind == FrameKind.ACK:
            self.outcome.append(position)
        elif kind == FrameKind.OPEN:
            self.open = position
            self.next_event = self.next_decision = 0
            self.events_proved = self.decisions_proved = unattributed
        elif kind == FrameKind.ROTATE:
            self.rotations.append(position)
            self._expect("decision", self.next_decision, header.first)
            self.decisions_proved = unattributed
        elif kind == FrameKind.CLOSE:
            self.close = position
            self._expect("decision", self.next_decision, header.first)
            self._expect("event", self.next_event, header.first + header.count)
            self.events_proved = self.decisions_proved = _ALL_PROVED
        elif kind == FrameKind.PUBLISHED:
            self.published.append(position)
            self.done |= header.count > 0
        elif kind == FrameKind.LOSS:
            self.losses.append(position)
        elif kind == FrameKind.ASIDE:
            self.done = self.aside = True

    def _expect(self, what: str, expected: int | None, found: int) -> None:
        if expected is not None and found != expected:
            self.damage = self.damage or f"{what} {expected} is missing from the journal: the next one there is {found}"

    @property
    def proved(self) -> int:
        """The number of ``ScanReport.unattributed`` damages that cannot concern the session."""
        return min(self.events_proved, self.decisions_proved)

    @property
    def first_segment(self) -> int:
        """The oldest segment that holds a frame of the session; 0 where none does."""
        candidates = [Position.unpack(frames[0]).segment for frames in (self.events, self.decisions) if frames]
        if self.open is not None:
            candidates.append(self.open.segment)
        candidates += [position.segment for position in self.rotations[:1]]
        return min(candidates, default=0)

    @property
    def last_segment(self) -> int:
        """The newest segment that holds a frame of the session; 0 where none does."""
        candidates = [Position.unpack(frames[-1]).segment for frames in (self.events, self.decisions) if frames]
        single = [
            self.open,
            self.close,
            *self.rotations[-1:],
            *self.published[-1:],
            *self.losses[-1:],
            *self.outcome[-1:],
        ]
        candidates += [position.segment for position in single if position is not None]
        return max(candidates, default=0)


@dataclass(slots=True)
class ScanReport:
    """The content of a journal."""

    #: How the journal ends: SEALED, UNSEALED or TORN.
    ending: Verdict = Verdict.UNSEALED
    sessions: dict[int, SessionFrames] = field(default_factory=dict)
    segments: list[int] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    #: The damages among them that may concern any session.
    unattributed: list[Damage] = field(default_factory=list)
    #: The torn end, where ``ending`` is TORN.
    torn: TornEnd | None = None
    proof: Proof | None = None
    #: Bytes of the last segment that are kept, and the offset of the last batch in it.
    end: int = 0
    batch_start: int = 0
    last_batch: int = 0
    #: Frames of the last batch that are there.
    last_frames: int = 0
    #: Whole frames, and bytes of all segments.
    frames: int = 0
    bytes: int = 0
    #: The last segment, if it was created and never written to.
    empty: int | None = None
    #: Names in the directory that are not the journal's; they are left alone.
    foreign: list[str] = field(default_factory=list)

    @property
    def next_session(self) -> int:
        """A session number that is not used yet."""
        return max(self.sessions, default=0) + 1
