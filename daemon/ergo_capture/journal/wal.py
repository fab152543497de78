"""The write-ahead journal of a daemon: it appends batches of frames, each synced before the next one is begun.

Threads: one thread commits; another may prepare the next batch between two commits; another may delete segments or take
a snapshot at any time (a lock guards the table of segments). Any thread may read through ``reader.read_frames``.

After an error in a write or a sync the journal has failed for good (P7). How much of the batch is on disk is unknown,
so nothing is written after it, and the next start finds out by scanning. Only a lack of space is different (P8): the
part of the batch that was written is cut off again, and the next commit may succeed. That commit goes to a new segment:
write and sync are one call (RWF_DSYNC), so the full disk may have been reported by the sync, and after a failed sync a
later sync of the same pages proves nothing. Segments are filled with zeros when they are created, so this happens only
on copy-on-write file systems.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ergo_capture.journal.errors import JournalError, JournalFailed, JournalFull, JournalLost
from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame, Position
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport, Verdict
from ergo_capture.journal.segment import (
    NextSegment,
    head_frame,
    install_segment,
    new_directory,
    remove_unfinished,
    repair,
    segment_path,
)
from ergo_capture.storage import Lock, Storage, StorageError, StorageFile
from ergo_capture.storage.kept_files import KeptFiles

#: The largest segment: positions keep offsets in 32 bits. A segment may exceed its configured size by one batch.
_MAX_BYTES: Final = (1 << 32) - 1
#: Size of a segment that holds only a SEAL frame.
_SEAL_BYTES: Final = 4096
#: Begins the names of the directories that segments are saved to, beside the journal's directory.
SAVED: Final = "journal.saved-"


class _Failure(NamedTuple):
    """The reason why nothing more can be appended.

    It holds the cause rather than the error to raise: an error that is raised again keeps all its earlier tracebacks.
    """

    path: str | Path | None
    #: None if the journal was closed.
    cause: StorageError | None

    @property
    def message(self) -> str:
        """The error message."""
        return f"append to journal '{self.path}': {'it is closed' if self.cause is None else self.cause.message}"

    def error(self) -> JournalFailed:
        """Return the error for a caller that wants to append."""
        hint = "acknowledged events are safe, others may be lost; check the disk, then restart the daemon"
        error = JournalFailed(self.message, op="append to journal", path=self.path, hint=hint)
        error.__cause__ = self.cause
        return error


class JournalSnapshot(msgspec.Struct, frozen=True):
    """The state of the journal; sizes in bytes."""

    segments: int
    bytes: int
    batch: int
    segment: int
    segment_offset: int
    failed: str | None


class PreparedBatch(NamedTuple):
    """A batch as bytes, encoded for its place in the open segment."""

    buffers: list[bytes]
    start: int
    end: int
    #: Frames of the batch.
    frames: int
    positions: list[Position]


class Journal:
    """An open journal; made by ``Journal.open``."""

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
        #: Sizes of the segments, by sequence. The committing thread adds, another one deletes, the loop reads.
        self._segments = sizes
        self._lock = threading.Lock()
        self._segment_bytes = segment_bytes
        self._program = program
        #: The last batch and the number of its frames; the head of a new segment records both.
        self._batch = found.last_batch
        self._frames = found.last_frames
        self._sequence = max(sizes, default=0)
        #: The last segment with a durable frame, and whether it ends with a SEAL frame. Only the commit thread writes
        #: it; a reader that sees an older value deletes fewer segments.
        self._durable = self._sequence
        self._sealed = found.ending is Verdict.SEALED
        self._file: StorageFile | None = None
        self._offset = 0
        self._capacity = 0
        self._failure: _Failure | None = None
        self._ahead = NextSegment(directory, storage)
        #: The open segments and the daemon's lock; None if they are not watched.
        self._kept: KeptFiles | None = None
        self._daemon_lock: Lock | None = None

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
        """Scan the journal, repair a torn end, and prepare to append; the caller holds the daemon's lock.

        The next batch goes to a new segment: its head records where the old one ended, and its batches prove that the
        old ones were durable.

        Args:
            directory: the directory of the segments; created by the caller.
            storage: the file system.
            segment_bytes: size of a segment, 4 KiB to 2 GiB; a larger batch gets a larger one.
            program: name and version, for the heads of segments.
            on_progress: called before each segment with the number of segments read and of all segments.

        Raises:
            JournalError: a segment is not a plain file, belongs to another user, or needs a newer program.
            StorageError: a file cannot be read, or the torn end cannot be repaired.
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

    # --- files that are removed or replaced ---

    def watch(self, lock: Lock) -> None:
        """Keep all segments open from now on, so that ``find_loss`` notices a removed one and ``save`` can copy it.

        A daemon that went on writing to a removed file would acknowledge events that no start ever finds.

        Args:
            lock: the daemon's lock on the state directory.
        """
        self._daemon_lock, self._kept = lock, KeptFiles(self._storage)
        for sequence in self.segments:
            self._kept.open(sequence, segment_path(self.directory, sequence))

    def is_lost(self) -> JournalLost | None:
        """Return an error if the current segment or the lock's file was removed; None otherwise.

        Must not be called while ``write`` runs. It reads nothing from the disk.
        """
        if self._daemon_lock is not None and not self._daemon_lock.is_linked():
            return _lost(self.directory.parent / "lock")
        if self._kept is not None and self._file is not None and not self._file.is_linked():
            return _lost(self._file.path)
        return None

    def find_loss(self) -> JournalLost | None:
        """Return an error if any segment, or the lock's file, is not under its name any more; None otherwise.

        Any thread may call this.

        Raises:
            StorageError: the state of a file cannot be read.
        """
        if self._daemon_lock is not None and not self._daemon_lock.is_named():
            return _lost(self.directory.parent / "lock")
        missing = None if self._kept is None else self._kept.find_missing()
        return None if missing is None else _lost(missing)

    def save(self) -> Path | None:
        """Copy all segments to a new directory ``journal.saved-N`` beside the journal's, and return it.

        Return None if they are not watched.

        Raises:
            StorageError: they cannot be copied.
        """
        if self._kept is None:
            return None
        state = self.directory.parent
        self._storage.mkdir(state)
        saved = new_directory(state, SAVED, self._storage)
        self._kept.save(saved)
        return saved

    # --- appending ---

    def commit(self, frames: Sequence[PendingFrame]) -> list[Position]:
        """Write frames as one batch and return their positions once they are on stable storage.

        Raises:
            JournalFull: there was no room; nothing of the batch was kept.
            JournalFailed: this write or an earlier one failed.
        """
        return self.write(self.prepare(frames) or frames)

    def prepare(self, frames: Sequence[PendingFrame]) -> PreparedBatch | None:
        """Encode a batch for its place in the open segment; return None if it does not fit there.

        Must not be called while ``write`` runs. The event loop encodes rather than the commit thread, which would wait
        for the interpreter lock.
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
            JournalFailed: this write or an earlier one failed.
            JournalLost: a segment was removed or replaced.
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
        """Return the error for the batch at ``start``; if the disk is full, first cut off what was written of it."""
        if not error.is_full or error.op == "sync":
            return self._fail(error)
        try:
            if start:
                # Frames of the lost batch must not follow those that are durable.
                file.truncate(start)
                self._close(file)
                with self._lock:
                    self._segments[self._sequence] = start
            else:
                # Remove the segment rather than cut it: an empty segment followed by another one is damage.
                self._forget(self._sequence)
                file.close()
                self._storage.remove(file.path)
                self._storage.sync_dir(self.directory)
                with self._lock:
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
            hint="free some space; the daemon then continues by itself",
        )

    def _fail(self, error: StorageError) -> JournalFailed:
        self._failure = _Failure(error.path, error)
        return self._failure.error()

    def _roll(self, size: int, segment_bytes: int) -> StorageFile:
        """Begin a new segment with room for a batch of ``size`` bytes.

        Raises:
            JournalFull: there is no space for one.
            JournalFailed: it cannot be created for another reason.
            JournalLost: a segment was removed or replaced.
            ValueError: the batch is longer than a segment may be.
        """
        needed = size + HEADER_BYTES * 4 + len(self._program)
        if needed > _MAX_BYTES:
            raise ValueError(f"a batch of {size} bytes is longer than a segment may be")
        if self._kept is not None and (loss := self.find_loss()) is not None:
            raise loss
        file: StorageFile | None = None
        try:
            file = self._ahead.take(self._sequence + 1, max(segment_bytes, needed), needed)
            capacity = file.size()
            full, self._file = self._file, None
            if full is not None:
                # Leave its zeros: another thread may be reading the file. The next start cuts them off.
                self._close(full)
            install_segment(self.directory, self._sequence + 1, self._storage)
        except StorageError as error:
            if file is not None:
                with suppress(StorageError):
                    file.close()
            raise (self._full(error) if error.is_full else self._fail(error)) from error
        self._sequence += 1
        self._file, self._offset, self._capacity = file, 0, capacity
        file.path = segment_path(self.directory, self._sequence)
        with self._lock:
            self._segments[self._sequence] = capacity
        if self._kept is not None:
            self._kept.add(self._sequence, file)
        return file

    def _close(self, file: StorageFile) -> None:
        """Close a segment after its last write, unless it is watched."""
        if self._kept is None:
            file.close()

    def _forget(self, sequence: int) -> None:
        """Stop watching a segment that is about to be removed."""
        if self._kept is not None:
            self._kept.drop(sequence)

    def seal(self) -> None:
        """Write a SEAL frame, which records that the journal was closed in order; do nothing if it has one already.

        Raises:
            JournalError: it could not be written. The next start takes that for a crash, and loses nothing.
        """
        if self._sealed:
            return
        frame = PendingFrame(FrameKind.SEAL, 0, 0, 0, b"{}")
        if self._failure is None and self._file is None:
            self._roll(frame.size, _SEAL_BYTES)
        self.commit([frame])
        self._sealed = True
        if self._file is not None:
            try:
                self._close(self._file)
            except StorageError as error:
                raise self._fail(error) from error
            # Nothing may follow a SEAL frame: a later batch goes to a new segment.
            self._file, self._offset, self._capacity = None, 0, 0

    def close(self) -> None:
        """Close the files, without a SEAL frame."""
        self._ahead.discard()
        if self._kept is not None:
            self._kept.close()
        if self._file is not None:
            with suppress(StorageError):
                self._file.close()
            self._file = None
        if self._failure is None:
            self._failure = _Failure(self.directory, None)

    # --- segments ---

    @property
    def current_segment(self) -> int:
        """Number of the segment that is being written, or of the next one if none is."""
        return self._sequence if self._file is not None else self._sequence + 1

    @property
    def segments(self) -> dict[int, int]:
        """Sizes in bytes, by number."""
        with self._lock:
            return dict(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments, preallocated ones included."""
        with self._lock:
            return sum(self._segments.values())

    def delete_segments(self, before: int) -> list[int]:
        """Delete the segments older than ``before``, oldest first; return their numbers.

        Only one thread at a time may call this.

        Raises:
            StorageError: a file could not be deleted; older ones are gone.
        """
        # The oldest segment left must hold a durable frame, so that a bad beginning of it is damage rather than a batch
        # that was never synced.
        end = min(before, self._durable)
        gone = sorted(sequence for sequence in self.segments if sequence < end)
        for sequence in gone:
            self._forget(sequence)
            self._storage.remove(segment_path(self.directory, sequence))
            with self._lock:
                del self._segments[sequence]
            # Sync after each: a power cut must not bring back an older segment without those after it.
            self._storage.sync_dir(self.directory)
        return gone

    def snapshot(self) -> JournalSnapshot:
        """Return the state of the journal."""
        sizes = self.segments
        return JournalSnapshot(
            segments=len(sizes),
            bytes=sum(sizes.values()),
            batch=self._batch,
            segment=self.current_segment,
            segment_offset=self._offset,
            failed=None if self._failure is None else self._failure.message,
        )


def _size(path: Path, storage: Storage) -> int:
    file = storage.open(path)
    try:
        return file.size()
    finally:
        file.close()


def _lost(path: Path) -> JournalLost:
    return JournalLost(
        f"watch journal: '{path}' was removed or replaced while the daemon used it",
        op="watch journal",
        path=path,
        hint="acknowledged events that are in no bundle yet may be gone from the directory: the daemon copies the "
        "segments that it has open to journal.saved-N beside the journal, and stops; see `ergo-capture help damage`",
    )
