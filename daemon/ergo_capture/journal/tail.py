"""Follow a journal that a daemon is writing, in any process that may read it: yield each event when it is decided.

The daemon is not involved, so nothing is left out under any load, and the daemon may stop and start meanwhile. An
event that is yielded is durable, because it is decided only then. Its decision is in a whole batch that may be one
commit ahead of what the daemon has acknowledged; if the machine dies in between, the decision is taken again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ergo_capture.journal.errors import JournalDamaged, JournalError
from ergo_capture.journal.frame import Frame, FrameKind, Position
from ergo_capture.journal.reader import Window, read_frames
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.journal.segment import segment_path, sequence_of
from ergo_capture.journal.session_frames import read_description, read_history
from ergo_capture.journal.session_stream import Pairing
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.storage import Storage, StorageFile


class Followed(msgspec.Struct, frozen=True):
    """An event and its decision."""

    session: str
    #: The event's index in its session.
    index: int
    event: ExternalEventRecord
    decision: EpisodeInvocationRecord


def follow(
    directory: Path,
    storage: Storage,
    wait: Callable[[], None],
    *,
    of: str = "",
    wanted: Callable[[Followed], bool] = lambda _item: True,
    latest: int | None = None,
) -> Iterator[Followed]:
    """Yield each event when it is decided, until the session ``of`` is over; without ``of``, never end.

    Args:
        directory: the journal.
        storage: the file system.
        wait: returns when there may be something new.
        of: a session's id; empty for all sessions that go on, and all to come.
        wanted: returns whether to yield an item.
        latest: how many of the items that are there already are yielded, at most: the last ones; None for all.

    Raises:
        JournalError: there is no such session, it is damaged, or segments were deleted before they were read.
        StorageError: the journal cannot be read.
    """
    found = scan(directory, storage)
    watched = _Watched(directory, of)
    there = filter(wanted, watched.begin(found, storage))
    yield from there if latest is None else deque(there, latest)
    tail = JournalTail(directory, storage, found)
    try:
        while not watched.over:
            for frame in tail.frames():
                yield from filter(wanted, watched.take(frame))
            if not watched.over:
                wait()
    finally:
        tail.close()


class _Watched:
    """The sessions that are followed."""

    def __init__(self, directory: Path, of: str) -> None:
        self.directory = directory
        self.of = of
        #: Whether the one session that is followed is over.
        self.over = False
        self._sessions: dict[int, tuple[str, Pairing]] = {}

    def begin(self, found: ScanReport, storage: Storage) -> Iterator[Followed]:
        """Yield the decided events that are there already."""
        positions: list[int] = []
        names = []
        for frames in found.sessions.values():
            history = read_history(self.directory, frames, storage)
            description, damage = history.description, history.damage
            if description is None:
                continue
            names += [] if frames.done else [description.session]
            if description.session != self.of and (self.of or frames.done or damage is not None):
                continue
            if damage is not None:
                raise JournalDamaged(
                    f"follow session {self.of}: {damage}",
                    op="follow",
                    path=self.directory,
                    hint="`ergo-capture doctor` says what is damaged",
                )
            # Without the OPEN frame, the oldest ROTATE frame says what the context store held.
            first, store = (
                (history.rotations[0].boundary, history.rotations[0].rotation.store)
                if frames.open is None and history.rotations
                else (0, None)
            )
            self._sessions[frames.number] = description.session, Pairing(description, store, first)
            positions += [*frames.events, *frames.decisions]
            positions += [] if frames.close is None else [frames.close.pack()]
        if self.of and not self._sessions:
            raise JournalError(
                f"follow session {self.of!r}: it is not in the journal '{self.directory}'",
                op="follow",
                path=self.directory,
                hint=f"open are: {', '.join(names) or 'none'}; a session that is over is in its bundle",
            )
        for frame in read_frames(self.directory, map(Position.unpack, sorted(positions)), storage):
            yield from self.take(frame)

    def take(self, frame: Frame) -> Iterator[Followed]:
        """Yield the events that a frame decides."""
        header = frame.header
        if header.kind == FrameKind.OPEN and not self.of:
            description = read_description(frame)
            self._sessions[header.session] = description.session, Pairing(description)
            return
        followed = self._sessions.get(header.session)
        if followed is None:
            return
        session, pairing = followed
        if header.kind == FrameKind.CLOSE:
            del self._sessions[header.session]
            self.over = session == self.of
            return
        for index, event, decision in pairing.take(frame):
            yield Followed(session, index, event, decision)


class JournalTail:
    """Reads the frames that are written after a scan.

    Only whole batches are yielded: a batch that does not fit on the disk is cut off and written again.
    """

    def __init__(self, directory: Path, storage: Storage, found: ScanReport) -> None:
        self.directory = directory
        self._storage = storage
        self._file: StorageFile | None = None
        #: The segment that is read; 0 before there is any.
        self._sequence = 0
        self._offset = 0
        if found.segments:
            self._sequence = found.segments[-1]
            self._offset = found.end

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that were written since the last call."""
        while True:
            # Look before reading: everything in a segment is written before the next one is begun.
            after = self._next_segment()
            if self._sequence:
                yield from self._read(complete=after is not None)
            if after is None:
                return
            self.close()
            self._sequence, self._offset = after, 0

    def _next_segment(self) -> int | None:
        """Return the number of the segment after the one that is read; None where there is none yet."""
        sequences = [sequence_of(name) for name in self._storage.list(self.directory)]
        later = [sequence for sequence in sequences if sequence is not None and sequence > self._sequence]
        if not later:
            return None
        if self._sequence and min(later) != self._sequence + 1:
            raise JournalError(
                f"follow journal '{self.directory}': segments after {self._sequence} were deleted before they were read",
                op="follow",
                path=self.directory,
                hint="follow it again; what they held is in bundles",
            )
        return min(later)

    def _read(self, *, complete: bool) -> Iterator[Frame]:
        """Yield the frames of the segment; those of an incomplete batch only if the segment is complete."""
        if self._file is None:
            self._file = self._storage.open(segment_path(self.directory, self._sequence))
        window, offset = Window(self._file), self._offset
        batch: list[Frame] = []
        while (header := window.header(offset, self._sequence)) is not None:
            body = window.body(offset, header)
            if body is None:
                break
            batch.append(Frame(header, bytes(body)))
            offset += header.size
            if header.last_in_batch:
                yield from batch
                batch, self._offset = [], offset
        if complete:
            yield from batch

    def close(self) -> None:
        """Close the segment."""
        if self._file is not None:
            self._file.close()
            self._file = None
