"""The journal of a daemon: appends batches of frames, each synced before the next is begun.

Owns: opening and mending, group commit, rolling over to new segments, retiring old ones, the seal.
Not here: frames' bytes (``frame.py``), who commits when (``server/writer.py``), reading (``reader.py``).

One thread commits; anybody may read at the same time, through ``reader.read_frames``.

After an error in a write or a sync the journal has failed for good (P7): what the error left of the batch on
disk is unknown, so nothing is written behind it, and the next start finds out by scanning. Only a lack of
space is different (P8): it shows before anything of the batch is synced, what was written of it is cut off
again, and the next commit may succeed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame
from ergo_capture.journal.reader import JournalDamaged, JournalError, Position, read_frames
from ergo_capture.journal.scan import Scan, scan
from ergo_capture.journal.segment import (
    NEW_SUFFIX,
    TORN_SUFFIX,
    head_frame,
    install_segment,
    prepare_segment,
    segment_path,
)
from ergo_capture.storage import Storage, StorageError, StorageFile

__all__ = ["Journal", "JournalDamaged", "JournalError", "JournalFailed", "JournalFull", "Position", "read_frames"]

#: The least a segment is allocated, where there is no room for a whole one.
_LEAST_BYTES = 1 << 20


class JournalFailed(JournalError):
    """A write or a sync failed: nothing more can be acknowledged until the daemon is restarted."""


class JournalFull(JournalError):
    """There is no room for the batch; nothing of it was kept, and a later one may succeed."""


class JournalSnapshot(msgspec.Struct, frozen=True):
    """What the journal consists of; sizes in bytes."""

    segments: int
    bytes: int
    batch: int
    segment: int
    segment_offset: int
    failed: str | None


class PreparedBatch(NamedTuple):
    """A batch as bytes, for its place in the open segment."""

    buffers: list[bytes]
    start: int
    end: int
    #: Frames of the batch.
    frames: int
    positions: list[Position]


class Journal:
    """An open journal. Made by ``Journal.open``."""

    def __init__(
        self,
        directory: Path,
        storage: Storage,
        *,
        segments: dict[int, int],
        batch: int,
        frames: int,
        segment_bytes: int,
        program: str,
    ) -> None:
        self.directory = directory
        self._storage = storage
        #: Sizes of the segments there are, by sequence.
        self._segments = segments
        self._segment_bytes = segment_bytes
        self._program = program
        #: The last batch, and how many of its frames are there; a new segment's head says both.
        self._batch = batch
        self._frames = frames
        self._sequence = max(segments, default=0)
        self._file: StorageFile | None = None
        self._offset = 0
        self._capacity = 0
        self._failure: JournalFailed | None = None
        self._ahead = _Ahead(directory, storage)

    @classmethod
    def open(
        cls,
        directory: Path,
        storage: Storage,
        *,
        segment_bytes: int = 64 << 20,
        program: str = "ergo-capture",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Journal, Scan]:
        """Scan the journal, mend a torn tail, and make ready to append; the caller holds the daemon's lock.

        What follows goes to a new segment: its head says where the old one ended, and its batches prove
        that the old ones were durable.

        Raises:
            JournalError: something else has a segment's name, or a newer version wrote it.
            StorageError: a file cannot be read, or the tail not be mended.
        """
        for name in storage.list(directory):
            if name.endswith(NEW_SUFFIX):
                storage.remove(directory / name)
        found = scan(directory, storage, on_progress=on_progress)
        _mend(directory, storage, found)
        segments = {sequence: segment_path(directory, sequence).stat().st_size for sequence in found.segments}
        journal = cls(
            directory,
            storage,
            segments=segments,
            batch=found.last_batch,
            frames=found.last_frames,
            segment_bytes=segment_bytes,
            program=program,
        )
        return journal, found

    # --- appending ---

    def commit(self, frames: Sequence[PendingFrame]) -> list[Position]:
        """Write frames as one batch and return their positions once they are on stable storage.

        Raises:
            JournalFull: there was no room; nothing of the batch was kept.
            JournalFailed: now, or at some earlier commit.
        """
        return self.write(self.prepare(frames) or list(frames))

    def prepare(self, frames: Sequence[PendingFrame]) -> PreparedBatch | None:
        """The batch's bytes and place, where it fits the segment that is open; None where it does not.

        Not to be called while ``write`` runs. Why apart: the thread that writes should need the interpreter
        as seldom as can be, because it waits for it behind the loop each time.
        """
        size = sum(map(len, frames))
        if self._file is None or self._failure is not None or self._offset + size > self._capacity:
            return None
        return self._encode(frames)

    def _encode(self, frames: Sequence[PendingFrame]) -> PreparedBatch:
        batch = list(frames)
        offset = start = self._offset
        if start == 0:
            batch.insert(0, head_frame(self._sequence, self._program, self._batch, self._frames))
        number, total = self._batch + 1, len(batch)
        positions: list[Position] = []
        buffers: list[bytes] = []
        for index, frame in enumerate(batch):
            buffers += frame.encode(self._sequence, number, index, total)
            positions.append(Position(self._sequence, offset))
            offset += len(frame)
        return PreparedBatch(buffers, start, offset, total, positions[1:] if start == 0 else positions)

    def write(self, batch: PreparedBatch | Sequence[PendingFrame]) -> list[Position]:
        """Write a batch, prepared or not, and return its positions once it is on stable storage.

        Raises:
            JournalFull: there was no room; nothing of the batch was kept.
            JournalFailed: now, or at some earlier commit.
        """
        if self._failure is not None:
            raise self._failure
        file = self._file
        if not isinstance(batch, PreparedBatch):
            size = sum(map(len, batch))
            if file is None or self._offset + size > self._capacity:
                file = self._roll(size)
            batch = self._encode(batch)
        assert file is not None
        try:
            file.write_at(batch.buffers, batch.start, sync=True)
        except StorageError as error:
            self._lose(error, file, batch.start)
        self._offset, self._batch, self._frames = batch.end, self._batch + 1, batch.frames
        if batch.end > self._capacity // 2:
            self._ahead.prepare(self._sequence + 1, self._segment_bytes)
        return batch.positions

    def _lose(self, error: StorageError, file: StorageFile, start: int) -> None:
        """The batch at ``start`` did not make it: say whether a later one may.

        Raises:
            JournalFull: there was no room, and nothing of the batch is left.
            JournalFailed: anything else.
        """
        if error.is_full and error.op != "sync":
            try:
                # Why: frames of the lost batch would otherwise lie behind those of the next one.
                file.truncate(start)
            except StorageError as second:
                raise self._fail(second) from error
            self._segments[self._sequence] = start
            raise JournalFull(
                f"append to journal '{file.path}': {error.message}",
                op="append to journal",
                path=file.path,
                hint="free some space; the daemon goes on by itself",
            ) from error
        raise self._fail(error) from error

    def _fail(self, error: StorageError) -> JournalFailed:
        self._failure = JournalFailed(
            f"append to journal '{error.path}': {error.message}",
            op="append to journal",
            path=error.path,
            hint="nothing that was not acknowledged is safe; look at the disk, then restart the daemon",
        )
        self._failure.__cause__ = error
        return self._failure

    def _roll(self, size: int) -> StorageFile:
        """Begin a new segment with room for a batch of ``size`` bytes.

        Raises:
            JournalFull: there is no room for one.
            JournalFailed: it cannot be made for another reason.
        """
        needed = size + HEADER_BYTES * 4 + len(self._program)
        try:
            file = self._ahead.take(self._sequence + 1, max(self._segment_bytes, needed), needed)
            install_segment(self.directory, self._sequence + 1, self._storage)
            if self._file is not None:
                self._file.truncate(self._offset)
                self._segments[self._sequence] = self._offset
                self._file.close()
        except StorageError as error:
            if error.is_full:
                raise JournalFull(
                    f"begin a journal segment in '{self.directory}': {error.message}",
                    op="begin journal segment",
                    path=self.directory,
                    hint="free some space; the daemon goes on by itself",
                ) from error
            raise self._fail(error) from error
        self._sequence += 1
        self._file, self._offset, self._capacity = file, 0, file.size()
        file.path = segment_path(self.directory, self._sequence)
        self._segments[self._sequence] = self._capacity
        return file

    def seal(self) -> None:
        """Say that the journal was closed in order; nothing is to be committed after it.

        Raises:
            JournalError: the seal could not be written; the next start takes it for a crash, and loses nothing.
        """
        self.commit([PendingFrame(FrameKind.SEAL, 0, 0, 0, b"{}")])
        assert self._file is not None
        self._file.truncate(self._offset)
        self._segments[self._sequence] = self._offset

    def close(self) -> None:
        """Let go of the files; does not seal."""
        self._ahead.discard()
        if self._file is not None:
            with suppress(StorageError):
                self._file.close()
            self._file = None
        if self._failure is None:
            self._failure = JournalFailed(f"append to journal '{self.directory}': it is closed", op="append to journal")

    # --- segments ---

    @property
    def current_segment(self) -> int:
        """Sequence of the segment that is being written, or of the next one where none is."""
        return self._sequence if self._file is not None else self._sequence + 1

    @property
    def segments(self) -> dict[int, int]:
        """Sizes in bytes by sequence."""
        return dict(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments, preallocated ones included."""
        return sum(self._segments.values())

    def retire(self, before: int) -> list[int]:
        """Delete the segments older than ``before``, oldest first; returns which.

        Raises:
            StorageError: a file could not be deleted; those before it are gone.
        """
        gone = [sequence for sequence in sorted(self._segments) if sequence < min(before, self.current_segment)]
        for sequence in gone:
            self._storage.remove(segment_path(self.directory, sequence))
            del self._segments[sequence]
        if gone:
            self._storage.sync_dir(self.directory)
        return gone

    def snapshot(self) -> JournalSnapshot:
        """What the journal consists of now."""
        return JournalSnapshot(
            segments=len(self._segments),
            bytes=self.size_bytes,
            batch=self._batch,
            segment=self.current_segment,
            segment_offset=self._offset,
            failed=None if self._failure is None else self._failure.message,
        )

    def __repr__(self) -> str:
        state = "failed" if self._failure else "open"
        return f"<Journal {self.directory} {state}, {len(self._segments)} segments, batch {self._batch}>"


class _Ahead:
    """Makes the next segment in a thread, before it is wanted.

    Why: filling 64 MiB with zeros takes as long as some hundred commits.
    """

    def __init__(self, directory: Path, storage: Storage) -> None:
        self._directory = directory
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._file: StorageFile | None = None

    def prepare(self, sequence: int, size: int) -> None:
        """Begin making segment ``sequence``, unless that was begun."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._make, args=(sequence, size), name="ergo-capture-segment", daemon=True
            )
            self._thread.start()

    def _make(self, sequence: int, size: int) -> None:
        # Why nothing is said of an error: the commit that wants the segment tries again and meets it itself.
        with suppress(StorageError):
            self._file = prepare_segment(self._directory, sequence, size, self._storage)

    def take(self, sequence: int, size: int, least: int) -> StorageFile:
        """Segment ``sequence``: the one made ahead where it is large enough, or one made now.

        Raises:
            StorageError: there is none and none can be made.
        """
        self._wait()
        file, self._file = self._file, None
        if file is not None:
            if file.size() >= least:
                return file
            file.close()
            self._storage.remove(file.path)
        try:
            return prepare_segment(self._directory, sequence, size, self._storage)
        except StorageError as error:
            smaller = max(least, _LEAST_BYTES)
            if not error.is_full or smaller >= size:
                raise
            return prepare_segment(self._directory, sequence, smaller, self._storage)

    def discard(self) -> None:
        """Remove what was made and not taken."""
        self._wait()
        file, self._file = self._file, None
        if file is not None:
            with suppress(StorageError):
                file.close()
                self._storage.remove(file.path)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _mend(directory: Path, storage: Storage, found: Scan) -> None:
    """Cut a torn tail off, keep a copy, and drop segments that were never written to (P5)."""
    tail = found.tail
    if tail is not None:
        path = segment_path(directory, tail.segment)
        file = storage.open(path, write=True)
        try:
            _keep_copy(path.with_name(path.name + TORN_SUFFIX), file, tail.offset, tail.length, storage)
            file.truncate(tail.offset)
        finally:
            file.close()
        storage.sync_dir(directory)
        if tail.offset == 0:
            found.empty.append(tail.segment)
    for sequence in [sequence for sequence in found.empty if sequence == found.segments[-1]]:
        storage.remove(segment_path(directory, sequence))
        storage.sync_dir(directory)
        found.segments.remove(sequence)
    if found.segments and not found.sealed and tail is None:
        path = segment_path(directory, found.segments[-1])
        file = storage.open(path, write=True)
        try:
            # Why: zeros that were made ahead are only in the way of the next reader.
            if found.end and file.size() > found.end:
                file.truncate(found.end)
            file.sync()
        finally:
            file.close()


def _keep_copy(path: Path, file: StorageFile, offset: int, length: int, storage: Storage) -> None:
    new = path.with_name(path.name + ".new")
    with suppress(StorageError):
        storage.remove(new)
    copy = storage.open(new, create=True)
    try:
        copy.write_at([file.read_at(offset, length)], 0)
        copy.sync()
    finally:
        copy.close()
    storage.replace(new, path)
