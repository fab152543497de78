"""A writer on a real journal, and submissions that record their outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from tests.daemons import short_directory

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.storage import RealStorage, Storage

#: Seconds after which a test whose writer does nothing fails.
_PATIENCE = 5.0
#: A delay in seconds that no test waits for.
NEVER = 3600.0


def frame(number: int = 1, kind: FrameKind = FrameKind.CLOSE, count: int = 0, size: int = 8) -> PendingFrame:
    """Return a frame of 64 + ``size`` bytes."""
    return PendingFrame(kind, number, 0, count, b"x" * size)


class Recorder:
    """A submission that records its outcome.

    Args:
        frame: its frame; None for a submission that has nothing to write.
        fails: the method that raises.
    """

    def __init__(self, frame: PendingFrame | None, fails: str = "") -> None:
        self.frame = frame
        self.fails = fails
        #: Positions and errors.
        self.outcomes: list[Any] = []

    def to_frame(self) -> PendingFrame | None:
        """Return the frame, or raise."""
        if self.fails == "to_frame":
            raise RuntimeError("a defect")
        return self.frame

    def on_durable(self, position: Position) -> None:
        """Record the position, or raise."""
        self.outcomes.append(position)
        if self.fails == "on_durable":
            raise RuntimeError("a defect")

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Record the error."""
        self.outcomes.append(error)

    @property
    def is_durable(self) -> bool:
        """Whether it became durable, once."""
        return [type(outcome) for outcome in self.outcomes] == [Position]

    async def until_told(self) -> Any:
        """Wait for the outcome and return it; fail if there is another one."""
        await until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        return outcome


async def until(condition: Any) -> None:
    """Wait until something holds."""
    with anyio.fail_after(_PATIENCE):
        while not condition():
            await anyio.sleep(0.001)


def writer_on(
    journal: Journal,
    *,
    decision_delay: float = 0.002,
    queue_bytes: int = 1 << 20,
    queue_frames: int = 1000,
    retry_delay: float = 0.25,
) -> Writer:
    """Return a writer that does not run yet."""
    return Writer(
        journal,
        decision_delay=decision_delay,
        queue_bytes=queue_bytes,
        queue_frames=queue_frames,
        retry_delay=retry_delay,
    )


@asynccontextmanager
async def running_writer(
    storage: Storage | None = None, *, kind: type[Journal] = Journal, segment_bytes: int = 1 << 16, **options: Any
) -> AsyncIterator[Writer]:
    """Run a writer; at the end close it, unless it has failed, and wait until it has ended."""
    with short_directory() as place, anyio.fail_after(_PATIENCE):
        journal, _ = kind.open(place, storage or RealStorage(), segment_bytes=segment_bytes)
        writer = writer_on(journal, **options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            await asyncio.sleep(0)
            yield writer
            writer.close()
        journal.close()
