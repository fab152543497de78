"""What sessions submit to the writer: event batches, and single frames that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.kernel.events import EventLike
from ergo_capture.server.commit.writer import Writer


class BatchOwner(Protocol):
    """The session a batch belongs to."""

    number: int

    def take_indices(self, count: int) -> int:
        """The index of the next frame's first event."""

    def accept(self, batch: Batch, position: Position) -> None:
        """The batch is on stable storage."""

    def refuse(self, batch: Batch, error: ErgoCaptureError) -> None:
        """The batch is not on stable storage and will not be."""


@dataclass(slots=True, eq=False)
class Batch:
    """Events of one chunk on their way into the journal."""

    session: BatchOwner
    #: The event lines, verbatim.
    body: bytes
    events: Sequence[EventLike]
    #: Index of the first event in the session, and that behind the last; known once the frame is made.
    first: int = -1
    end: int = -1
    #: Why it was refused, if it was.
    refused: ErgoCaptureError | None = None
    #: Memory it is counted as while it waits, in bytes.
    held: int = 0

    def to_frame(self) -> PendingFrame | None:
        """The lines under the next free index."""
        count = len(self.events)
        self.first = self.session.take_indices(count)
        self.end = self.first + count
        return PendingFrame(FrameKind.EVENTS, self.session.number, self.first, count, self.body)

    def on_durable(self, position: Position) -> None:
        """Accepted: the client may forget the events, and the supervisor may see them."""
        self.session.accept(self, position)

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Not accepted: the client is told, and may send the events again."""
        self.refused = error
        self.session.refuse(self, error)


@dataclass(slots=True, eq=False)
class _Mark:
    frame: PendingFrame
    done: asyncio.Future[Position]

    def to_frame(self) -> PendingFrame | None:
        return self.frame

    def on_durable(self, position: Position) -> None:
        if not self.done.done():
            self.done.set_result(position)

    def on_refused(self, error: ErgoCaptureError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def append(writer: Writer, frame: PendingFrame) -> Position:
    """Have one frame durable; waits while the disk is full.

    Raises:
        ErgoCaptureError: the journal has failed.
    """
    while True:
        mark = _Mark(frame, asyncio.get_running_loop().create_future())
        writer.submit(mark, frame.size)
        try:
            return await mark.done
        except JournalFull:
            continue
