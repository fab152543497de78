"""What the writer commits at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position


class Submission(Protocol):
    """Something that wants to be durable; the writer asks it for its frame when the batch is made."""

    def to_frame(self) -> PendingFrame | None:
        """The frame as of now, or None where nothing is left to write."""

    def on_durable(self, position: Position) -> None:
        """The frame is on stable storage."""

    def on_refused(self, error: ErgoCaptureError) -> None:
        """The frame is not on stable storage and will not be."""


@dataclass(slots=True)
class CommitBatch:
    """What is written and synced at once; times as ``time.monotonic`` has them."""

    began: float
    submissions: list[Submission] = field(default_factory=list)
    frames: list[PendingFrame] = field(default_factory=list)
    #: Those first of the submissions that are refused where the disk is full; the others are tried again.
    firm: int = 0
    bytes: int = 0
    events: int = 0
    decisions: int = 0
    #: When the oldest submission was queued.
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.began

    def add(self, submission: Submission, frame: PendingFrame | None) -> None:
        """Take one in, where it has anything left to write."""
        if frame is None:
            return
        self.submissions.append(submission)
        self.frames.append(frame)
        self.bytes += frame.size
        if frame.kind is FrameKind.EVENTS:
            self.events += frame.count
        elif frame.kind is FrameKind.DECISIONS:
            self.decisions += frame.count
