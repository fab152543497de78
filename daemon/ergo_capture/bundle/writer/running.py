"""Compose the bundle of a running session, as far as its events are decided.

The temporary files are not needed after a crash: the journal holds all of their content, and the next start removes
them. Unlike in ``compose_bundle``, a file is read back while it is written: the time to finish grows with the last
events and the copy of the decisions, not with the session.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.bundle.writer.compose import (
    ComposedBundle,
    ComposeJob,
    Facts,
    finish_bundle,
    head_of,
    missing,
    read_events,
    style_of,
)
from ergo_capture.bundle.writer.expand import DecisionTexts
from ergo_capture.bundle.writer.sink import BundleWriter
from ergo_capture.journal.frame import Frame, Position
from ergo_capture.journal.reader import read_frames
from ergo_capture.storage import RealStorage, Storage


class RunningBundle:
    """A bundle that grows with its session; a context manager, which removes the files unless ``finish`` has returned.

    Args:
        job: the part, without frames; its ``count`` is ignored.
        storage: the file system of the journal.

    Raises:
        CaptureWriteError: a directory or a temporary file could not be created.
    """

    def __init__(self, job: ComposeJob, storage: Storage | None = None) -> None:
        self._job = job
        self._storage = storage or RealStorage()
        #: Events of the part that are written.
        self.composed = 0
        #: Packed positions of the EVENTS frames that are not written whole.
        self._event_frames = array("Q")
        #: Bytes of positions that were added.
        self._events_added = self._decisions_added = 0
        self._bodies = _Bodies(Path(job.journal), self._storage)
        self._facts = Facts()
        self._decisions = DecisionTexts(self._bodies, job.description.constraints.deadline, self._facts.counter)
        self._style = style_of(job)
        self._bundle = BundleWriter(
            Path(job.destination), head_of(job.description), style=CaptureJsonStyle(self._style), compress=job.compress
        )

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary files."""
        return self._bundle.file_bytes

    def add_frames(self, events: bytes, decisions: bytes) -> None:
        """Add the next frames of the part, packed as in ``ComposeJob``."""
        self._event_frames.frombytes(events)
        self._bodies.positions.frombytes(decisions)
        self._events_added += len(events)
        self._decisions_added += len(decisions)

    def advance(self, decided: int, most_bytes: int | None = None) -> None:
        """Write events and their decisions until ``decided`` of the part are written, or ``most_bytes`` of text.

        Args:
            decided: events of the part whose decisions are in the frames that were added.
            most_bytes: bytes of the events' compact text after which it ends early; None for no bound.

        Raises:
            CaptureWriteError: a file could not be written.
            JournalError: the journal does not hold what it should.
        """
        if decided <= self.composed:
            return
        rest = msgspec.structs.replace(self._job, first=self._job.first + self.composed, count=decided - self.composed)
        ends: list[int] = []
        sink = self._bundle.sink
        # Not the sink's size: its thread adds to that later.
        written = 0
        for ids, events in read_events(rest, self._read_frames(ends), self._facts, self.composed):
            decisions = self._decisions.take(ids)
            if decisions is None:
                raise missing(rest, "decisions")
            self._bundle.write(events, decisions)
            sink.read_back_along()
            self.composed += len(ids)
            self._facts.last_event_id = ids[-1]
            written += len(events.text)
            if most_bytes is not None and written >= most_bytes:
                break
        sink.drain()
        del self._event_frames[: sum(end <= self._job.first + self.composed for end in ends)]

    def _read_frames(self, ends: list[int]) -> Iterator[Frame]:
        """Yield the frames that are not completely written; add the index after each to ``ends``."""
        positions = map(Position.unpack, self._event_frames)
        for frame in read_frames(Path(self._job.journal), positions, self._storage):
            ends.append(frame.header.first + frame.header.count)
            yield frame

    def finish(self, job: ComposeJob) -> ComposedBundle | None:
        """Write the missing events, sync the bundle and read it back, as ``compose_bundle`` does.

        Return None if the bundle must be composed from its beginning, because it has to have another layout or
        compression, or fewer events than are written.

        Args:
            job: the part, with all its frames.

        Raises:
            CaptureWriteError: a file could not be written.
            ErgoCaptureError: the text that was read back is not the one that was written.
            JournalError: the journal does not hold what it should.
        """
        wanted = job.destination, job.compress, job.first, style_of(job)
        if wanted != (self._job.destination, self._job.compress, self._job.first, self._style):
            return None
        if job.count < self.composed:
            return None
        self._bundle.sink.renew_threads()
        self.add_frames(job.event_frames[self._events_added :], job.decision_frames[self._decisions_added :])
        self.advance(job.count)
        return finish_bundle(self._bundle, job, self._style, self._facts)

    def close(self) -> None:
        """Remove the temporary files, but not one that ``finish`` has returned."""
        self._bundle.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Bodies(Iterator[bytes]):
    """Yields the bodies of the DECISIONS frames at positions; more positions may be added after its end."""

    def __init__(self, journal: Path, storage: Storage) -> None:
        #: Packed.
        self.positions = array("Q")
        self._journal = journal
        self._storage = storage
        self._frames: Iterator[Frame] = iter(())

    def __next__(self) -> bytes:
        while (frame := next(self._frames, None)) is None:
            if not self.positions:
                raise StopIteration
            positions, self.positions = self.positions, array("Q")
            self._frames = read_frames(self._journal, map(Position.unpack, positions), self._storage)
        return frame.body
