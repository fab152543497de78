"""Makes a journal that somebody left behind ready to be continued.

Doing it twice, or again after being cut short, changes nothing more (P5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.scan_report import Proof, ScanReport, TornEnd
from ergo_capture.journal.segment import TORN_SUFFIX, is_unfinished, segment_path
from ergo_capture.storage import Storage, StorageFile

_COPY_BYTES: Final = 1 << 20


def remove_unfinished(directory: Path, storage: Storage) -> None:
    """Remove what was being made when the last process ended.

    Raises:
        StorageError: the directory cannot be read, or a file not be removed.
    """
    for name in storage.list(directory):
        if is_unfinished(name):
            storage.remove(directory / name)


def repair(directory: Path, storage: Storage, found: ScanReport) -> None:
    """Cut a torn tail off, keep a copy of it, and have all that stays on stable storage.

    ``found`` is brought up to date. Damage is left as it is.

    Raises:
        StorageError: what is torn could not be copied or cut off.
    """
    if found.torn is not None:
        _keep_copy(directory, found.torn, storage)
    if found.proof is not None:
        _prove(directory, storage, found, found.proof)
    if found.segments and (found.torn is not None or found.end):
        _mend_last(directory, storage, found)
    if found.torn is not None and found.torn.offset == 0:
        found.empty.append(found.torn.segment)
    if found.empty:
        storage.remove(segment_path(directory, found.empty[-1]))
        storage.sync_dir(directory)
        found.segments.remove(found.empty.pop())


def _prove(directory: Path, storage: Storage, found: ScanReport, proof: Proof) -> None:
    """Say that what comes before was synced, where what said so goes now (P6)."""
    frame = PendingFrame(FrameKind.PROOF, 0, 0, 0, b"{}")
    file = storage.open(segment_path(directory, proof.segment), write=True)
    try:
        file.write_at(frame.encode(proof.segment, proof.batch, 0, 1), proof.offset, sync=True)
    finally:
        file.close()
    found.last_batch, found.last_frames = proof.batch, 1
    if found.torn is not None and proof.segment == found.torn.segment:
        found.batch_start, found.end = proof.offset, proof.offset + frame.size


def _mend_last(directory: Path, storage: Storage, found: ScanReport) -> None:
    # Why: what lies behind a seal is not ours to remove.
    stray = found.sealed and any(damage.segment == found.segments[-1] for damage in found.damage)
    file = storage.open(segment_path(directory, found.segments[-1]), write=True)
    try:
        # Why also where nothing is torn: zeros that were made ahead are only in the way of the next reader; and in a
        # copy that was cut off, those that fill up the last frame may be missing.
        if file.size() != found.end and not stray:
            file.truncate(found.end)
        _write_again(file, found.batch_start, found.end)
    finally:
        file.close()


def _write_again(file: StorageFile, start: int, end: int) -> None:
    """Have the last batch on stable storage, which nobody ever vouched for, be it a seal.

    Why written and not only synced: after a sync that failed the system may hold pages that are not on disk
    and take them for clean; a new sync would succeed and sync nothing (P7).
    """
    for offset in range(start, end, _COPY_BYTES):
        file.write_at([file.read_at(offset, min(_COPY_BYTES, end - offset))], offset)
    file.sync()


def _keep_copy(directory: Path, torn: TornEnd, storage: Storage) -> None:
    path = segment_path(directory, torn.segment)
    file = storage.open(path)
    try:
        names = set(storage.list(directory))
        number, name = 1, path.name + TORN_SUFFIX
        while name in names:
            if _holds(path.with_name(name), file, torn, storage):
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


def _holds(path: Path, file: StorageFile, torn: TornEnd, storage: Storage) -> bool:
    """Whether a copy from before is one of the same bytes."""
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
