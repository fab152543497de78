"""What a scan of the journal found: the frames of each session, what is torn and what is damaged."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final

from ergo_capture.journal.frame import FrameKind, Header, Position

#: More damages than there ever are: for sessions that no later damage can concern.
_FOR_GOOD: Final = 1 << 62


@dataclass(slots=True)
class Damage:
    """A stretch of a segment that held acknowledged data and no longer does."""

    segment: int
    offset: int
    #: Bytes up to the next frame, or to the end of the segment; 0 where bytes are missing altogether.
    length: int
    reason: str
    #: Sessions concerned, by number: the frame's own where its header is good, else all that cannot prove
    #: that nothing of theirs is missing.
    sessions: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"segment {self.segment}, offset {self.offset}: {self.reason} ({self.length} bytes)"


@dataclass(slots=True)
class TornEnd:
    """A torn end of the journal."""

    segment: int
    offset: int
    #: Bytes from there to the end of what was written.
    length: int
    #: Whole frames among them, of the batch that was never synced.
    frames: int


@dataclass(slots=True)
class Proof:
    """A PROOF frame that is to be written before something is taken away, or the next start takes damage for torn."""

    segment: int
    offset: int
    batch: int


@dataclass(slots=True)
class SessionFrames:
    """Where the frames of one session are, in order; positions are packed."""

    number: int
    open: Position | None = None
    events: array[int] = field(default_factory=lambda: array("Q"))
    decisions: array[int] = field(default_factory=lambda: array("Q"))
    rotations: list[Position] = field(default_factory=list)
    close: Position | None = None
    published: list[Position] = field(default_factory=list)
    #: Whether a PUBLISHED frame says that it was the last bundle.
    done: bool = False
    #: Index after the last event and the last decision; None before the first.
    next_event: int | None = None
    next_decision: int | None = None
    #: What is wrong with it, if its journal is damaged.
    damage: str | None = None
    #: How many of the damages that may concern anybody its events, and its decisions, have been proved to be
    #: whole in spite of.
    events_proved: int = 0
    decisions_proved: int = 0

    def take(self, header: Header, position: Position, doubts: int) -> None:
        """Note a frame of the session; the next in order, or something is missing (rule 3 of ``scan.py``).

        Args:
            header: the frame's.
            position: where it is.
            doubts: damages before it that may concern anybody.
        """
        kind = header.kind
        if kind == FrameKind.EVENTS:
            self._expect("event", self.next_event, header.first)
            self.next_event = header.first + header.count
            self.events_proved = doubts
            self.events.append(position.pack())
        elif kind == FrameKind.DECISIONS:
            self._expect("decision", self.next_decision, header.first)
            self.next_decision = header.first + header.count
            self.decisions_proved = doubts
            self.decisions.append(position.pack())
        elif kind == FrameKind.OPEN:
            self.open = position
            self.next_event = self.next_decision = 0
            self.events_proved = self.decisions_proved = doubts
        elif kind == FrameKind.ROTATE:
            self.rotations.append(position)
            self._expect("decision", self.next_decision, header.first)
            self.decisions_proved = doubts
        elif kind == FrameKind.CLOSE:
            self.close = position
            self._expect("decision", self.next_decision, header.first)
            self._expect("event", self.next_event, header.first)
            self.events_proved = self.decisions_proved = _FOR_GOOD
        elif kind == FrameKind.PUBLISHED:
            self.published.append(position)
            self.done |= header.count > 0

    def _expect(self, what: str, expected: int | None, found: int) -> None:
        if expected is not None and found != expected:
            self.damage = self.damage or f"{what} {expected} is missing from the journal: the next one there is {found}"

    @property
    def first_segment(self) -> int:
        """The oldest segment that holds a frame of it."""
        candidates = [Position.unpack(frames[0]).segment for frames in (self.events, self.decisions) if frames]
        if self.open is not None:
            candidates.append(self.open.segment)
        candidates += [position.segment for position in self.rotations[:1]]
        return min(candidates, default=0)


@dataclass(slots=True)
class ScanReport:
    """All that a journal holds."""

    sessions: dict[int, SessionFrames] = field(default_factory=dict)
    segments: list[int] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    #: Of those, the ones that may concern any session.
    unattributed: list[Damage] = field(default_factory=list)
    torn: TornEnd | None = None
    proof: Proof | None = None
    #: Bytes of the last segment that are worth keeping, and where in it the last batch begins.
    end: int = 0
    batch_start: int = 0
    last_batch: int = 0
    #: Frames of the last batch that are there.
    last_frames: int = 0
    frames: int = 0
    bytes: int = 0
    sealed: bool = False
    #: Segments at the end without a single whole frame: made, and never written to.
    empty: list[int] = field(default_factory=list)
    #: Names in the directory that are none of ours; left alone.
    foreign: list[str] = field(default_factory=list)

    @property
    def next_session(self) -> int:
        """A session number that was never used."""
        return max(self.sessions, default=0) + 1
