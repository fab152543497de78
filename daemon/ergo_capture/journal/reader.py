"""Read frames by position, from any thread or process, while the journal is being written.

No lock is needed. A position becomes known only when its frame is on stable storage, a durable frame never changes, and
each call of ``read_frames`` opens its own files. A segment is cut only after its durable frames, and deleted only when
no session needs it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from crc32c import crc32c

from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import (
    CHECKED_BYTES,
    HEADER_BYTES,
    MAGIC,
    OFFSET_BITS,
    Frame,
    Header,
    Position,
    decode_header,
    unpack_header,
)
from ergo_capture.journal.segment import segment_path
from ergo_capture.storage import Storage, StorageError, StorageFile

#: Bytes read at a time, at first and at most. The read-ahead doubles for sequential readers and is small at first,
#: because a journal of many sessions is read one small frame after another, each from another place.
_FIRST_BYTES: Final = 16 << 10
_WINDOW_BYTES: Final = 1 << 20


class Window:
    """A view of a file of which only a stretch is in memory."""

    def __init__(self, file: StorageFile) -> None:
        self.size = file.size()
        self._limit = self.size
        self._file = file
        self._start = 0
        self._held = memoryview(b"")
        self._ahead = _FIRST_BYTES

    def end_at(self, offset: int) -> None:
        """End the window at ``offset``, and read everything before it again.

        While another process writes, bytes that were read earlier may be older than the bytes after them.
        """
        self.size = self._limit = min(offset, self.size)
        self._start, self._held = 0, memoryview(b"")

    def view(self, offset: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends.

        Raises:
            StorageError: the file cannot be read.
        """
        size = min(size, self.size - offset)
        if size <= 0:
            return memoryview(b"")
        start = offset - self._start
        if start < 0 or start + size > len(self._held):
            self._held = memoryview(self._read(offset, max(size, self._ahead)))
            self._ahead = min(2 * self._ahead, _WINDOW_BYTES)
            self._start, start = offset, 0
        return self._held[start : start + size]

    def ahead(self, offset: int) -> memoryview:
        """Return the bytes in memory from ``offset`` on; at least a header, unless the file ends before.

        Raises:
            StorageError: the file cannot be read.
        """
        self.view(offset, HEADER_BYTES)
        return self._held[max(0, offset - self._start) :]

    def _read(self, offset: int, wanted: int) -> bytes:
        while True:
            # Ask for the size each time: a batch that does not fit on the disk is cut off again.
            self.size = min(self._file.size(), self._limit)
            wanted = min(wanted, self.size - offset)
            if wanted <= 0:
                return b""
            try:
                return self._file.read_at(offset, wanted)
            except StorageError:
                # The file was cut between the two calls: try again with its new size.
                if self._file.size() >= offset + wanted:
                    raise

    def header(self, offset: int, segment: int) -> Header | None:
        """Return the valid header at ``offset``; None where there is none."""
        return decode_header(self.view(offset, HEADER_BYTES), segment)

    def body(self, offset: int, header: Header) -> memoryview | None:
        """Return the body of the frame at ``offset``; None if its checksum is not the header's."""
        if header.length > self.size - offset - HEADER_BYTES:
            return None
        body = self.view(offset + HEADER_BYTES, header.length)
        return body if header.fits(body) else None


def read_frames(directory: Path, positions: Iterable[Position], storage: Storage) -> Iterator[Frame]:
    """Yield the frames at ``positions``, in that order.

    Raises:
        JournalDamaged: there is no whole frame at one of them.
        StorageError: a segment cannot be read.
    """
    segment, file, window = -1, None, None
    try:
        for position in positions:
            if position.segment != segment or window is None:
                if file is not None:
                    file.close()
                segment = position.segment
                file = storage.open(segment_path(directory, segment))
                window = Window(file)
            header = window.header(position.offset, segment)
            body = None if header is None else window.body(position.offset, header)
            if header is None or body is None:
                path = segment_path(directory, segment)
                raise JournalDamaged(
                    f"read journal segment '{path}': no whole frame at offset {position.offset}, where one was written",
                    op="read journal segment",
                    path=path,
                    hint="keep the file as it is and run `ergo-capture doctor` on it",
                )
            yield Frame(header, bytes(body))
    finally:
        if file is not None:
            file.close()


class FrameRun(NamedTuple):
    """Consecutive frames of one session and kind, from one segment."""

    positions: array[int]
    #: By frame: index of the first event or decision, their number, and the body.
    firsts: list[int]
    counts: list[int]
    bodies: list[bytes]


def read_runs(directory: Path, packed: array[int], storage: Storage) -> Iterator[FrameRun]:
    """Yield the frames at packed positions in runs; each run is at most about a MiB, or one frame.

    For a million frames this takes a quarter of what ``read_frames`` does.

    Raises:
        JournalDamaged: there is no whole frame at one of them.
        StorageError: a segment cannot be read.
    """
    start, end, most = 0, len(packed), (1 << OFFSET_BITS) - 1
    while start < end:
        segment = packed[start] >> OFFSET_BITS
        stop = bisect_left(packed, (segment + 1) << OFFSET_BITS, start)
        file = storage.open(segment_path(directory, segment))
        try:
            window = Window(file)
            while start < stop:
                offset = packed[start] & most
                run = _whole_frames(window.ahead(offset), offset, packed, start, stop, segment)
                if not run.bodies:
                    (frame,) = read_frames(directory, [Position(segment, offset)], storage)
                    header = frame.header
                    run = FrameRun(packed[start : start + 1], [header.first], [header.count], [frame.body])
                yield run
                start += len(run.bodies)
        finally:
            file.close()


def _whole_frames(view: memoryview, base: int, packed: array[int], start: int, stop: int, segment: int) -> FrameRun:
    """Return the frames up to the first that is not whole in ``view``, which begins at the offset ``base``."""
    firsts: list[int] = []
    counts: list[int] = []
    bodies: list[bytes] = []
    size = len(view)
    less = base + (segment << OFFSET_BITS)
    for index in range(start, stop):
        at = packed[index] - less
        body = at + HEADER_BYTES
        if body > size:
            break
        magic, _, _, _, its_segment, _, _, first, count, length, _, _, body_crc, own_crc = unpack_header(view, at)
        text = bytes(view[body : body + length])
        if (
            len(text) != length
            or crc32c(text) != body_crc
            or crc32c(view[at : at + CHECKED_BYTES]) != own_crc
            or magic != MAGIC
            or its_segment != segment
        ):
            break
        firsts.append(first)
        counts.append(count)
        bodies.append(text)
    return FrameRun(packed[start : start + len(bodies)], firsts, counts, bodies)


def undecodable(frame: Frame, error: ValueError) -> JournalDamaged:
    """Return the error for a whole frame whose body cannot be decoded."""
    header = frame.header
    return JournalDamaged(
        f"read journal: frame {header.index} of batch {header.batch} holds what no daemon writes: {error}",
        op="read journal",
        hint="`ergo-capture doctor` says what is damaged",
    )
