"""Makes a journal ready to be continued after a crash.

Repairing it twice, or again after a repair that was interrupted, changes nothing more (P5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.scan_report import Proof, ScanReport, TornEnd, Verdict
from ergo_capture.journal.segment import TORN_SUFFIX, is_unfinished, segment_path
from ergo_capture.storage import Storage, StorageFile

_COPY_BYTES: Final = 1 << 20


def remove_unfinished(directory: Path, storage: Storage) -> None:
    """Remove segments and copies that were being made when the last process ended.

    Raises:
        StorageError: the directory cannot be read, or a file cannot be removed.
    """
    for name in storage.list(directory):
        if is_unfinished(name):
            storage.remove(directory / name)


def repair(directory: Path, storage: Storage, report: ScanReport) -> None:
    """Cut off a torn end, keep a copy of it, and sync all that stays. Damage is left as it is.

    Args:
        directory: the journal; the caller holds the daemon's lock.
        storage: the filesystem.
        report: what a scan found; brought up to date.

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
    """Record that the batches before were synced; what said so is about to be removed (P6)."""
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
    # Stray bytes behind a seal are not the journal's to remove.
    stray = any(damage.verdict is Verdict.STRAY and damage.segment == report.segments[-1] for damage in report.damage)
    file = storage.open(segment_path(directory, report.segments[-1]), write=True)
    try:
        # Also where nothing is torn: preallocated zeros are in the way of the next reader, and a copy that was cut off
        # may lack the zeros that fill up the last frame.
        if file.size() != report.end and not stray:
            file.truncate(report.end)
        _write_again(file, report.batch_start, report.end)
    finally:
        file.close()


def _write_again(file: StorageFile, start: int, end: int) -> None:
    """Rewrite and sync the last batch; nothing proves that it was durable, not even a seal.

    Syncing alone is not enough. After a failed sync the system may hold pages that are not on disk and take them for
    clean; a new sync would succeed and sync nothing (P7).
    """
    for offset in range(start, end, _COPY_BYTES):
        file.write_at([file.read_at(offset, min(_COPY_BYTES, end - offset))], offset)
    file.sync()


def _keep_copy(directory: Path, torn: TornEnd, storage: Storage) -> None:
    """Copy the torn end to a file beside its segment, unless an earlier repair did."""
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
