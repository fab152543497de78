"""Submissions to the writer, and the batch of them that is committed at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position


class Submission(Protocol):
    """Something that is to become durable; the writer asks for its frame when it builds a batch."""

    def to_frame(self) -> PendingFrame | None:
        """Return the current frame, or None if there is nothing left to write."""

    def on_durable(self, position: Position) -> None:
        """Note that the frame is on stable storage."""

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Note that the frame is not on stable storage and will not be."""


@dataclass(slots=True)
class CommitBatch:
    """The frames that are written and synced together. Times are those of ``time.monotonic``."""

    began: float
    #: When the oldest submission was queued.
    since: float
    submissions: list[Submission] = field(default_factory=list)
    frames: list[PendingFrame] = field(default_factory=list)
    #: How many of the first submissions are refused if the disk is full; the others are tried again.
    firm: int = 0
    bytes: int = 0
    events: int = 0
    decisions: int = 0
    #: Whether it is an empty batch that only tests whether the disk can be written.
    is_probe: bool = False
    #: Whether it is refused if the disk is full, because room was made for it before.
    is_last_attempt: bool = False

    def add(self, submission: Submission) -> None:
        """Add the submission's frame, if it has one.

        Raises:
            Exception: the submission has a defect.
        """
        frame = submission.to_frame()
        if frame is None:
            return
        self.submissions.append(submission)
        self.frames.append(frame)
        self.bytes += frame.size
        if frame.kind is FrameKind.EVENTS:
            self.events += frame.count
        elif frame.kind is FrameKind.DECISIONS:
            self.decisions += frame.count


@dataclass(slots=True, eq=False)
class FrameSubmission:
    """A single frame, and the future that resolves to its position."""

    frame: PendingFrame
    done: asyncio.Future[Position]

    def to_frame(self) -> PendingFrame:
        """Return the frame."""
        return self.frame

    def on_durable(self, position: Position) -> None:
        """Resolve the future, unless its waiter was cancelled."""
        if not self.done.done():
            self.done.set_result(position)

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Fail the future, unless its waiter was cancelled."""
        if not self.done.done():
            self.done.set_exception(error)
