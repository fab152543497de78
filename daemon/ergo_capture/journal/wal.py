"""The journal of a daemon: appends batches of frames, each synced before the next is begun.

One thread commits; anybody may read at the same time, through ``reader.read_frames``, and one other thread
may retire segments.

After an error in a write or a sync the journal has failed for good (P7): what the error left of the batch on
disk is unknown, so nothing is written behind it, and the next start finds out by scanning. Only a lack of
space is different (P8): what was written of the batch is cut off again, and the next commit may succeed. It
goes to a new segment. Why: where write and sync are one call (RWF_DSYNC), a file system that finds room for
blocks only when it syncs reports a full disk from the sync, and nothing may rest on a later sync of the same
pages. Segments are filled with zeros beforehand, so that this happens on copy-on-write file systems only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ergo_capture.journal.errors import JournalError, JournalFailed, JournalFull
from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame, Position
from ergo_capture.journal.repair import remove_unfinished, repair
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport, Verdict
from ergo_capture.journal.segment import NextSegment, head_frame, install_segment, segment_path
from ergo_capture.storage import Storage, StorageError, StorageFile

#: Positions keep offsets in 32 bits; a segment may be larger than it was to be by one batch.
_MAX_BYTES: Final = (1 << 32) - 1
#: What a segment needs that holds nothing but a seal.
_SEAL_BYTES: Final = 4096


class Failure:
    """Why nothing more can be appended.

    Why not the exception itself: one that is raised again and again keeps every stack it was raised in.
    """

    def __init__(self, path: str | Path | None, cause: StorageError | None) -> None:
        self._path = path
        self._cause = cause

    @property
    def message(self) -> str:
        """It in words."""
        return f"append to journal '{self._path}': {'it is closed' if self._cause is None else self._cause.message}"

    def error(self) -> JournalFailed:
        """What whoever wants to append is told."""
        hint = "nothing that was not acknowledged is safe; look at the disk, then restart the daemon"
        error = JournalFailed(self.message, op="append to journal", path=self._path, hint=hint)
        error.__cause__ = self._cause
        return error

    def __repr__(self) -> str:
        return f"<Failure {self.message}>"


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
        found: ScanReport,
        sizes: dict[int, int],
        segment_bytes: int,
        program: str,
    ) -> None:
        self.directory = directory
        self._storage = storage
        #: Sizes of the segments there are, by sequence.
        self._segments = sizes
        self._segment_bytes = segment_bytes
        self._program = program
        #: The last batch, and how many of its frames are there; a new segment's head says both.
        self._batch = found.last_batch
        self._frames = found.last_frames
        self._sequence = max(sizes, default=0)
        #: The last segment of which anything is durable, and whether it ends with a seal.
        self._durable = self._sequence
        self._sealed = found.ending is Verdict.SEALED
        self._file: StorageFile | None = None
        self._offset = 0
        self._capacity = 0
        self._failure: Failure | None = None
        self._ahead = NextSegment(directory, storage)

    @classmethod
    def open(
        cls,
        directory: Path,
        storage: Storage,
        *,
        segment_bytes: int = 64 << 20,
        program: str = "ergo-capture",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Journal, ScanReport]:
        """Scan the journal, mend a torn tail, and make ready to append; the caller holds the daemon's lock.

        What follows goes to a new segment: its head says where the old one ended, and its batches prove
        that the old ones were durable.

        Args:
            directory: where the segments are; made by the caller.
            storage: the filesystem.
            segment_bytes: size of a segment, 4 KiB to 2 GiB; a larger batch gets a larger one.
            program: name and version, for the segments' heads.
            on_progress: told of segments read and segments there are.

        Raises:
            JournalError: something else has a segment's name, another user's it is, or a newer version's.
            StorageError: a file cannot be read, or the tail not be mended.
            ValueError: ``segment_bytes`` is out of range.
        """
        if not 4096 <= segment_bytes <= 2 << 30:
            raise ValueError(f"segments of {segment_bytes} bytes: they must be of 4 KiB to 2 GiB")
        found = scan(directory, storage, on_progress=on_progress)
        paths = {sequence: segment_path(directory, sequence) for sequence in found.segments}
        for path in paths.values():
            if not storage.is_own(path):
                raise JournalError(
                    f"open journal: '{path}' belongs to another user",
                    op="open journal",
                    path=path,
                    hint="run the daemon as the user that owns its journal, or give the files to this one",
                )
        remove_unfinished(directory, storage)
        repair(directory, storage, found)
        sizes = {sequence: _size(paths[sequence], storage) for sequence in found.segments}
        return cls(directory, storage, found=found, sizes=sizes, segment_bytes=segment_bytes, program=program), found

    # --- appending ---

    def commit(self, frames: Sequence[PendingFrame]) -> list[Position]:
        """Write frames as one batch and return their positions once they are on stable storage.

        Raises:
            JournalFull: there was no room; nothing of the batch was kept.
            JournalFailed: now, or at some earlier commit.
        """
        return self.write(self.prepare(frames) or frames)

    def prepare(self, frames: Sequence[PendingFrame]) -> PreparedBatch | None:
        """The batch's bytes and place, where it fits the segment that is open; None where it does not.

        Not to be called while ``write`` runs. Why apart: the thread that writes should need the interpreter
        as seldom as can be, because it waits for it behind the loop each time.
        """
        if not frames or self._file is None or self._failure is not None:
            return None
        batch = self._encode(frames)
        return batch if batch.end <= self._capacity else None

    def _encode(self, frames: Sequence[PendingFrame]) -> PreparedBatch:
        batch = frames
        offset = start = self._offset
        if start == 0:
            batch = [head_frame(self._sequence, self._program, self._batch, self._frames), *frames]
        sequence, number, total = self._sequence, self._batch + 1, len(batch)
        positions: list[Position] = []
        buffers: list[bytes] = []
        for index, frame in enumerate(batch):
            buffers += frame.encode(sequence, number, index, total)
            positions.append(Position(sequence, offset))
            offset += frame.size
        return PreparedBatch(buffers, start, offset, total, positions[1:] if start == 0 else positions)

    def write(self, batch: PreparedBatch | Sequence[PendingFrame]) -> list[Position]:
        """Write a batch, prepared or not, and return its positions once it is on stable storage.

        Raises:
            JournalFull: there was no room; nothing of the batch was kept.
            JournalFailed: now, or at some earlier commit.
        """
        if self._failure is not None:
            raise self._failure.error()
        file = self._file
        if not isinstance(batch, PreparedBatch):
            if not batch:
                return []
            size = sum(frame.size for frame in batch)
            if file is None or self._offset + size > self._capacity:
                file = self._roll(size, self._segment_bytes)
            batch = self._encode(batch)
        assert file is not None
        assert batch.start == self._offset, "a batch was prepared while another one was written"
        try:
            file.write_at(batch.buffers, batch.start, sync=True)
        except StorageError as error:
            raise self._lose(error, file, batch.start) from error
        self._offset, self._batch, self._frames = batch.end, self._batch + 1, batch.frames
        self._durable, self._sealed = self._sequence, False
        if batch.end > self._capacity // 2:
            self._ahead.prepare(self._sequence + 1, self._segment_bytes)
        return batch.positions

    def _lose(self, error: StorageError, file: StorageFile, start: int) -> JournalError:
        """The batch at ``start`` did not make it: say whether a later one may."""
        if not error.is_full or error.op == "sync":
            return self._fail(error)
        try:
            if start:
                # Why: frames of the lost batch would otherwise lie behind those that are durable.
                file.truncate(start)
                file.close()
                self._segments[self._sequence] = start
            else:
                # Why not cut: an empty segment with another one behind it is damage.
                file.close()
                self._storage.remove(file.path)
                self._storage.sync_dir(self.directory)
                del self._segments[self._sequence]
                self._sequence -= 1
        except StorageError as second:
            return self._fail(second)
        self._file, self._offset, self._capacity = None, 0, 0
        return self._full(error)

    def _full(self, error: StorageError) -> JournalFull:
        return JournalFull(
            f"append to journal '{self.directory}': {error.message}",
            op="append to journal",
            path=error.path,
            hint="free some space; the daemon goes on by itself",
        )

    def _fail(self, error: StorageError) -> JournalFailed:
        self._failure = Failure(error.path, error)
        return self._failure.error()

    def _roll(self, size: int, segment_bytes: int) -> StorageFile:
        """Begin a new segment with room for a batch of ``size`` bytes.

        Raises:
            JournalFull: there is no room for one.
            JournalFailed: it cannot be made for another reason.
            ValueError: the batch is longer than a segment may be.
        """
        needed = size + HEADER_BYTES * 4 + len(self._program)
        if needed > _MAX_BYTES:
            raise ValueError(f"a batch of {size} bytes is longer than a segment may be")
        file: StorageFile | None = None
        try:
            file = self._ahead.take(self._sequence + 1, max(segment_bytes, needed), needed)
            capacity = file.size()
            full, self._file = self._file, None
            if full is not None:
                # Why its zeros are not cut off: somebody may be reading it just now; the next start does that.
                full.close()
            install_segment(self.directory, self._sequence + 1, self._storage)
        except StorageError as error:
            if file is not None:
                with suppress(StorageError):
                    file.close()
            raise (self._full(error) if error.is_full else self._fail(error)) from error
        self._sequence += 1
        self._file, self._offset, self._capacity = file, 0, capacity
        file.path = segment_path(self.directory, self._sequence)
        self._segments[self._sequence] = capacity
        return file

    def seal(self) -> None:
        """Say that the journal was closed in order; does nothing where nothing came since the last seal.

        Raises:
            JournalError: the seal could not be written; the next start takes it for a crash, and loses nothing.
        """
        if self._sealed:
            return
        if self._failure is None and self._file is None:
            self._roll(_SEAL_BYTES // 2, _SEAL_BYTES)
        self.commit([PendingFrame(FrameKind.SEAL, 0, 0, 0, b"{}")])
        self._sealed = True
        if self._file is not None:
            try:
                self._file.close()
            except StorageError as error:
                raise self._fail(error) from error
            # Why: nothing may ever lie behind a seal; what comes all the same goes to a new segment.
            self._file, self._offset, self._capacity = None, 0, 0

    def close(self) -> None:
        """Let go of the files; does not seal."""
        self._ahead.discard()
        if self._file is not None:
            with suppress(StorageError):
                self._file.close()
            self._file = None
        if self._failure is None:
            self._failure = Failure(self.directory, None)

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

    def delete_segments(self, before: int) -> list[int]:
        """Delete the segments older than ``before``, oldest first; returns which.

        Raises:
            StorageError: a file could not be deleted; those before it are gone.
        """
        # Why not up to the current one: the oldest segment left must hold something durable, so that a bad
        # beginning of it is damage and cannot be a batch that was never synced.
        gone = [sequence for sequence in sorted(self._segments) if sequence < min(before, self._durable)]
        for sequence in gone:
            self._storage.remove(segment_path(self.directory, sequence))
            del self._segments[sequence]
            # Why each: a power cut must not bring back an older segment without the ones between.
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


def _size(path: Path, storage: Storage) -> int:
    file = storage.open(path)
    try:
        return file.size()
    finally:
        file.close()
