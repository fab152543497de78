"""Segments, the files of the journal: their names, their creation, and the repair of a torn end.

Repair is idempotent, also after a repair that was interrupted (P5).
"""

from __future__ import annotations

import errno
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from ergo_capture.journal.frame import FORMAT_VERSION, FrameKind, PendingFrame
from ergo_capture.journal.payloads import SegmentHead, encode_body
from ergo_capture.journal.scan_report import Proof, ScanReport, TornEnd
from ergo_capture.storage import Storage, StorageError, StorageFile

SUFFIX: Final = ".journal"
#: A segment that is being created; removed at start.
NEW_SUFFIX: Final = ".journal.new"
#: A copy of what a start cut off, beside the segment.
TORN_SUFFIX: Final = ".torn"
#: The least size of a segment when the disk has no room for a whole one.
_LEAST_BYTES: Final = 1 << 20
_COPY_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"(\d{16})\.journal")
_UNFINISHED: Final = re.compile(r"\d{16}\.journal(\.torn)?\.new")
_TORN: Final = re.compile(r"\d{16}\.journal\.torn(\.\d+)?")


def segment_path(directory: Path, sequence: int) -> Path:
    """Return the path of a segment."""
    return directory / f"{sequence:016d}{SUFFIX}"


def sequence_of(name: str) -> int | None:
    """Return the sequence number in a file name; None where it is not a segment's name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_unfinished(name: str) -> bool:
    """Return whether a name is that of a segment, or of a copy of a torn end, that was being created."""
    return _UNFINISHED.fullmatch(name) is not None


def is_torn_copy(name: str) -> bool:
    """Return whether a name is that of a copy of a torn end."""
    return _TORN.fullmatch(name) is not None


def head_frame(sequence: int, program: str, batch: int, frames: int) -> PendingFrame:
    """Return the first frame of a new segment."""
    head = SegmentHead(FORMAT_VERSION, program, sequence, batch, frames)
    return PendingFrame(FrameKind.SEGMENT, 0, 0, 0, encode_body(head))


def prepare_segment(directory: Path, sequence: int, size: int, storage: Storage) -> StorageFile:
    """Create a segment of ``size`` zero bytes under a temporary name; ``install_segment`` renames it.

    Raises:
        StorageError: it cannot be created; nothing of it is left.
    """
    path = directory / f"{sequence:016d}{NEW_SUFFIX}"
    try:
        file = storage.open(path, create=True)
    except StorageError as error:
        if error.errno != errno.EEXIST:
            raise
        # An earlier attempt on a full disk may have left it.
        storage.remove(path)
        file = storage.open(path, create=True)
    try:
        file.allocate(size)
    except BaseException:
        # Raise the first error; the next start removes the rest of the file.
        with suppress(StorageError):
            file.close()
        with suppress(StorageError):
            storage.remove(path)
        raise
    return file


def install_segment(directory: Path, sequence: int, storage: Storage) -> Path:
    """Give a prepared segment its name, durably, and return its path.

    Raises:
        StorageError: it could not be renamed, or the directory not be synced.
    """
    path = segment_path(directory, sequence)
    storage.replace(directory / f"{sequence:016d}{NEW_SUFFIX}", path)
    storage.sync_dir(directory)
    return path


def new_directory(state: Path, prefix: str, storage: Storage) -> Path:
    """Return the path of a directory for segments that does not exist yet: in the state directory, prefix and number.

    Raises:
        StorageError: the state directory cannot be read.
    """
    names = set(storage.list(state))
    number = 1
    while names & {f"{prefix}{number}", f"{prefix}{number}.new"}:
        number += 1
    return state / f"{prefix}{number}"


class NextSegment:
    """Creates the next segment in a thread, before it is needed: 64 MiB of zeros take as long as hundreds of commits.

    All methods are called by the commit thread, or after it has ended. No lock is needed: the creating thread only sets
    ``_file``, which is read after the thread was joined.
    """

    def __init__(self, directory: Path, storage: Storage) -> None:
        self._directory = directory
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._file: StorageFile | None = None

    def prepare(self, sequence: int, size: int) -> None:
        """Begin to create segment ``sequence`` of ``size`` bytes, unless that was begun."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._create, args=(sequence, size), name="ergo-capture-segment", daemon=True
            )
            self._thread.start()

    def _create(self, sequence: int, size: int) -> None:
        # Ignore an error: the commit that needs the segment tries again and raises it.
        with suppress(StorageError):
            self._file = prepare_segment(self._directory, sequence, size, self._storage)

    def take(self, sequence: int, size: int, least: int) -> StorageFile:
        """Return segment ``sequence``: the one created ahead if it has ``least`` bytes, or one created now.

        Raises:
            StorageError: there is none and none can be created.
        """
        self._join()
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
        """Remove a segment that was created and not taken."""
        self._join()
        file, self._file = self._file, None
        if file is not None:
            with suppress(StorageError):
                file.close()
                self._storage.remove(file.path)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


# --- repair ---


def remove_unfinished(directory: Path, storage: Storage) -> None:
    """Remove segments and copies that were being made when the last process ended.

    Raises:
        StorageError: the directory cannot be read, or a file cannot be removed.
    """
    for name in storage.list(directory):
        if is_unfinished(name):
            storage.remove(directory / name)


def repair(directory: Path, storage: Storage, report: ScanReport) -> None:
    """Cut off a torn end, keep a copy of it, and sync the rest. Damage is left as it is.

    Args:
        directory: the journal; the caller holds the daemon's lock.
        storage: the filesystem.
        report: the report of a scan; updated to the repaired journal.

    Raises:
        StorageError: the torn end could not be copied or cut off.
    """
    torn = report.torn
    if torn is not None:
        _keep_copy(directory, torn, storage)
    if report.proof is not None:
        _write_proof(directory, storage, report, report.proof)
    if report.segments and (torn is not None or report.end):
        _repair_last(directory, storage, report)
    if torn is not None and torn.offset == 0:
        report.empty = torn.segment
    if report.empty is not None:
        storage.remove(segment_path(directory, report.empty))
        storage.sync_dir(directory)
        report.segments.remove(report.empty)
        report.empty = None


def _write_proof(directory: Path, storage: Storage, report: ScanReport, proof: Proof) -> None:
    """Record that the batches before were synced, because the bytes that prove it are about to be removed (P6)."""
    frame = PendingFrame(FrameKind.PROOF, 0, 0, 0, b"{}")
    file = storage.open(segment_path(directory, proof.segment), write=True)
    try:
        file.write_at(frame.encode(proof.segment, proof.batch, 0, 1), proof.offset, sync=True)
    finally:
        file.close()
    report.last_batch, report.last_frames = proof.batch, 1
    if report.torn is not None and proof.segment == report.torn.segment:
        report.batch_start, report.end = proof.offset, proof.offset + frame.size


def _repair_last(directory: Path, storage: Storage, report: ScanReport) -> None:
    file = storage.open(segment_path(directory, report.segments[-1]), write=True)
    try:
        # Do it even if nothing is torn: the next reader would have to skip preallocated zeros, and a copy that was cut
        # short may lack the zeros that pad the last frame. Stray bytes after a SEAL frame are before the end, and stay.
        if file.size() != report.end:
            file.truncate(report.end)
        _write_again(file, report.batch_start, report.end)
    finally:
        file.close()


def _write_again(file: StorageFile, start: int, end: int) -> None:
    """Rewrite and sync the last batch; nothing proves that it was durable, not even a SEAL frame.

    Syncing alone is not enough: after a failed sync the system may take pages for clean that are not on disk, and a new
    sync would succeed without writing them (P7).
    """
    for offset in range(start, end, _COPY_BYTES):
        file.write_at([file.read_at(offset, min(_COPY_BYTES, end - offset))], offset)
    file.sync()


def _keep_copy(directory: Path, torn: TornEnd, storage: Storage) -> None:
    """Copy the torn end to a file beside its segment, unless an earlier repair has done so."""
    path = segment_path(directory, torn.segment)
    file = storage.open(path)
    try:
        names = set(storage.list(directory))
        number, name = 1, path.name + TORN_SUFFIX
        while name in names:
            if _is_copy(path.with_name(name), file, torn, storage):
                return
            number += 1
            name = f"{path.name}{TORN_SUFFIX}.{number}"
        new = path.with_name(path.name + TORN_SUFFIX + ".new")
        copy = storage.open(new, create=True)
        try:
            for done in range(0, torn.length, _COPY_BYTES):
                size = min(_COPY_BYTES, torn.length - done)
                copy.write_at([file.read_at(torn.offset + done, size)], done)
            copy.sync()
        finally:
            copy.close()
    finally:
        file.close()
    storage.replace(new, path.with_name(name))
    storage.sync_dir(directory)


def _is_copy(path: Path, file: StorageFile, torn: TornEnd, storage: Storage) -> bool:
    """Return whether an existing copy holds the same bytes."""
    copy = storage.open(path)
    try:
        if copy.size() != torn.length:
            return False
        return all(
            copy.read_at(done, size) == file.read_at(torn.offset + done, size)
            for done in range(0, torn.length, _COPY_BYTES)
            for size in [min(_COPY_BYTES, torn.length - done)]
        )
    finally:
        copy.close()
