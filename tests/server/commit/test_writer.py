"""The writer: a defect in one submission, and what it looks at between commits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import pytest
from tests.daemons import short_directory

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import LOOK_SECONDS, Writer
from ergo_capture.storage import RealStorage


class RecordingSubmission:
    """A submission that records its outcome, and raises in the method named ``fails``."""

    def __init__(self, number: int, fails: str = "") -> None:
        self.number = number
        self.fails = fails
        self.outcomes: list[Any] = []

    def to_frame(self) -> PendingFrame | None:
        """Return a frame, or raise."""
        if self.fails == "to_frame":
            raise RuntimeError("a defect")
        return PendingFrame(FrameKind.CLOSE, self.number, 0, 0, b"{}")

    def on_durable(self, position: Position) -> None:
        """Record the position, or raise."""
        self.outcomes.append(position)
        if self.fails == "on_durable":
            raise RuntimeError("a defect")

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Record the error."""
        self.outcomes.append(error.message)


@pytest.mark.parametrize("fails", ["to_frame", "on_durable"])
async def test_p7_a_defect_in_one_submission_stops_the_writer_and_refuses_the_others(fails: str) -> None:
    """P7: otherwise the other submissions would wait for ever, while the daemon looks healthy."""
    with short_directory() as place:
        journal, _ = Journal.open(place, RealStorage())
        writer = Writer(journal)
        before, broken, behind = RecordingSubmission(1), RecordingSubmission(2, fails), RecordingSubmission(3)
        for submission in (before, broken, behind):
            writer.submit(submission, 64)
        with anyio.fail_after(20):
            await writer.run()
        journal.close()
    assert writer.failure is not None
    assert "a defect" in writer.failure.message
    assert behind.outcomes == [writer.failure.message]
    assert len(before.outcomes) == len(broken.outcomes) == 1
    with pytest.raises(ErgoCaptureError, match="a defect"):
        writer.submit(RecordingSubmission(4), 64)


async def test_commits_that_follow_one_another_do_not_each_look_at_the_journals_files() -> None:
    """Looking costs a client with one event in flight a fifth of its wait."""
    looks = 0

    class Watched(Journal):
        def is_lost(self) -> None:
            nonlocal looks
            looks += 1

    with short_directory() as place:
        journal, _ = Watched.open(place, RealStorage())
        writer = Writer(journal)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            for number in range(200):
                await writer.append(PendingFrame(FrameKind.CLOSE, number, 0, 0, b"{}"))
            seconds = time.monotonic() - began
            assert 1 <= looks <= 1 + seconds / LOOK_SECONDS
            await asyncio.sleep(2 * LOOK_SECONDS)
            looked = looks
            await writer.append(PendingFrame(FrameKind.CLOSE, 200, 0, 0, b"{}"))
            assert looks == looked + 1
            writer.close()
        journal.close()
