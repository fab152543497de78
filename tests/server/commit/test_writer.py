"""The writer: what one submission's defect costs the others."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from tests.daemons import short_directory

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.storage import RealStorage


class Told:
    """A submission that notes what it is told, and fails where it is asked to."""

    def __init__(self, number: int, fails: str = "") -> None:
        self.number = number
        self.fails = fails
        self.said: list[Any] = []

    def to_frame(self) -> PendingFrame | None:
        """Its frame, or a defect."""
        if self.fails == "to_frame":
            raise RuntimeError("a defect")
        return PendingFrame(FrameKind.CLOSE, self.number, 0, 0, b"{}")

    def on_durable(self, position: Position) -> None:
        """Note it, or a defect."""
        self.said.append(position)
        if self.fails == "on_durable":
            raise RuntimeError("a defect")

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Note it."""
        self.said.append(error.message)


@pytest.mark.parametrize("fails", ["to_frame", "on_durable"])
async def test_p7_a_defect_in_one_submission_stops_the_writer_and_everybody_is_told(fails: str) -> None:
    """Not a word would be worse: whoever waits for the batch would wait for ever, and the daemon look well."""
    with short_directory() as place:
        journal, _ = Journal.open(place, RealStorage())
        writer = Writer(journal)
        before, broken, behind = Told(1), Told(2, fails), Told(3)
        for submission in (before, broken, behind):
            writer.submit(submission, 64)
        with anyio.fail_after(20):
            await writer.run()
        journal.close()
    assert writer.failure is not None
    assert "a defect" in writer.failure.message
    assert behind.said == [writer.failure.message]
    assert len(before.said) == len(broken.said) == 1
    with pytest.raises(ErgoCaptureError, match="a defect"):
        writer.submit(Told(4), 64)
