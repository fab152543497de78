"""Read the segments of a journal, in order, and split them into frames, which ``verdict`` classifies.

A length is used only from a header whose checksum is right, and nothing is allocated for any other. If the checksum is
right, the bytes up to the frame's end are its body, even if they look like headers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.frame import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_BYTES,
    MAGIC,
    FrameKind,
    Position,
    decode_header,
)
from ergo_capture.journal.reader import Window
from ergo_capture.journal.scan_report import Damage, ScanReport
from ergo_capture.journal.segment import is_torn_copy, is_unfinished, segment_path, sequence_of
from ergo_capture.journal.verdict import (
    BadStretch,
    Block,
    SegmentContents,
    WholeFrame,
    classify,
    needs_newer,
    newer_error,
)
from ergo_capture.storage import Storage

_BLOCK_BYTES: Final = 1 << 20


def scan(directory: Path, storage: Storage, *, on_progress: Callable[[int, int], None] | None = None) -> ScanReport:
    """Read every segment once, in order; change nothing.

    Args:
        directory: the journal.
        storage: the filesystem.
        on_progress: called before each segment with the number of segments read and of all segments.

    Raises:
        JournalError: a file with a segment's name is not a plain file, or a newer version wrote a segment.
        StorageError: a file cannot be read.
    """
    sequences, foreign = _list_segments(directory, storage)
    with closing(
        _read_segments(directory, sequences, storage, on_progress or (lambda _done, _total: None))
    ) as segments:
        report = classify(segments)
    report.foreign = foreign
    return report


def _list_segments(directory: Path, storage: Storage) -> tuple[list[int], list[str]]:
    """Return the sequence numbers of the segments, sorted, and the names that are not the journal's."""
    sequences, foreign = [], []
    for name in storage.list(directory):
        sequence = sequence_of(name)
        if sequence is None:
            if not is_unfinished(name) and not is_torn_copy(name):
                foreign.append(name)
            continue
        path = directory / name
        if not storage.is_plain(path):
            raise JournalError(
                f"read journal: '{path}' is not a plain file",
                op="read journal",
                path=path,
                hint="move it out of the journal's directory; only segments have such names",
            )
        sequences.append(sequence)
    return sequences, foreign


def _read_segments(
    directory: Path, sequences: list[int], storage: Storage, on_progress: Callable[[int, int], None]
) -> Generator[SegmentContents]:
    for done, sequence in enumerate(sequences):
        on_progress(done, len(sequences))
        path, last = segment_path(directory, sequence), done + 1 == len(sequences)
        file = storage.open(path)
        try:
            window = Window(file)
            size = window.size
            if last:
                # A daemon may be writing it. Read up to the end as of now: everything before it was written before, in
                # order. A batch written later would prove bytes durable that were read before they were written.
                window.end_at(-(-_end_of(window) // ALIGNMENT) * ALIGNMENT)
            yield SegmentContents(path, sequence, size, last, _split(window, path, sequence, size))
        finally:
            file.close()


def _split(window: Window, path: Path, sequence: int, file_bytes: int) -> Iterator[BadStretch | WholeFrame | Block]:
    """Yield every frame of a segment and every stretch without one, in order; before each, a ``Block`` of bytes.

    Args:
        window: the segment; it may end before the file does.
        path: the segment's path, for errors.
        sequence: the segment's number.
        file_bytes: size of the file.

    Raises:
        JournalError: a newer version wrote it.
        StorageError: the segment cannot be read.
    """
    offset, end = 0, None
    while offset < window.size:
        block = Block(window.ahead(offset), offset)
        yield block
        if block.taken:
            offset += block.taken
            continue
        header = window.header(offset, sequence)
        if header is None:
            end = _end_of(window) if end is None else end
            if offset >= end:
                return
            found = _next_header(window, offset + ALIGNMENT, sequence)
            stop = end if found is None else found
            yield BadStretch(None, Damage(sequence, offset, stop - offset, "there is no frame"))
            if found is None:
                return
            offset = found
            continue
        if header.version > FORMAT_VERSION:
            raise newer_error(path, str(needs_newer(header)))
        body = window.body(offset, header)
        if body is None:
            size = min(header.size, file_bytes - offset)
            sessions = [header.session] if header.session else []
            yield BadStretch(header, Damage(sequence, offset, size, "a frame's body is not what was written", sessions))
        else:
            kept = bytes(body) if header.kind == FrameKind.SEGMENT else b""
            yield WholeFrame(header, Position(sequence, offset), kept)
        offset += header.size


def _end_of(window: Window) -> int:
    """Return the offset after the last byte that is not zero."""
    stop = window.size
    while stop:
        start = max(0, stop - _BLOCK_BYTES)
        written = bytes(window.view(start, stop - start)).rstrip(b"\0")
        if written:
            return start + len(written)
        stop = start
    return 0


def _next_header(window: Window, offset: int, sequence: int) -> int | None:
    """Return the next offset, a multiple of 8, of a header that has the right checksum."""
    stamp = sequence.to_bytes(8, "little")
    while offset + HEADER_BYTES <= window.size:
        block = bytes(window.view(offset, _BLOCK_BYTES))
        last = len(block) - HEADER_BYTES
        at = block.find(MAGIC)
        while 0 <= at <= last:
            # Compare the segment's number before the checksum: text full of magics then costs almost nothing.
            if (
                at % ALIGNMENT == 0
                and block[at + 8 : at + 16] == stamp
                and decode_header(block[at : at + HEADER_BYTES], sequence) is not None
            ):
                return offset + at
            at = block.find(MAGIC, at + 1)
        # Not the whole block: a header may lie across its end.
        offset += last // ALIGNMENT * ALIGNMENT + ALIGNMENT
    return None
