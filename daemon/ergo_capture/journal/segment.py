"""A segment: one file of the journal.

Owns: names, the head frame that chains segments, and making a segment ready to be written.
Not here: which segment is written or deleted when (``journal.py``), reading them all (``scan.py``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.journal.frame import FORMAT_VERSION, FrameKind, PendingFrame
from ergo_capture.storage import Storage, StorageFile

SUFFIX: Final = ".journal"
#: A segment that is being made; swept at start.
NEW_SUFFIX: Final = ".journal.new"
#: What recovery cut off, kept beside the segment.
TORN_SUFFIX: Final = ".torn"
_NAME: Final = re.compile(r"(\d{16})\.journal")


class SegmentHead(msgspec.Struct, frozen=True):
    """The body of a segment's first frame.

    ``batch`` and ``frames`` are the last batch before this segment and how many of its frames are there.
    Why: a segment that was cut short, or a torn batch of which recovery kept a part, is told from damage by
    what the next segment says about it.
    """

    format: int
    program: str
    sequence: int
    batch: int
    frames: int


def segment_path(directory: Path, sequence: int) -> Path:
    """The file of a segment."""
    return directory / f"{sequence:016d}{SUFFIX}"


def sequence_of(name: str) -> int | None:
    """The sequence number in a file name, or None where it is not a segment's."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def head_frame(sequence: int, program: str, batch: int, frames: int) -> PendingFrame:
    """The first frame of a new segment."""
    head = SegmentHead(FORMAT_VERSION, program, sequence, batch, frames)
    return PendingFrame(FrameKind.SEGMENT, 0, 0, 0, msgspec.json.encode(head))


def read_head(body: bytes) -> SegmentHead:
    """The body of a SEGMENT frame.

    Raises:
        ValueError: it is not one.
    """
    return msgspec.json.decode(body, type=SegmentHead)


def prepare_segment(directory: Path, sequence: int, size: int, storage: Storage) -> StorageFile:
    """A segment of ``size`` zero bytes under a temporary name; ``install_segment`` gives it its own.

    Raises:
        StorageError: it cannot be made; nothing of it is left.
    """
    path = directory / f"{sequence:016d}{NEW_SUFFIX}"
    file = storage.open(path, create=True)
    try:
        file.allocate(size)
    except BaseException:
        file.close()
        storage.remove(path)
        raise
    return file


def install_segment(directory: Path, sequence: int, storage: Storage) -> Path:
    """Give a prepared segment its name, durably.

    Raises:
        StorageError: it could not be renamed, or the directory not be synced.
    """
    path = segment_path(directory, sequence)
    storage.replace(directory / f"{sequence:016d}{NEW_SUFFIX}", path)
    storage.sync_dir(directory)
    return path
