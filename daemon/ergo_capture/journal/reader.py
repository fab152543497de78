"""Reads frames back, by position, from any thread or process while the journal is being written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import HEADER_BYTES, Frame, Header, Position, decode_header
from ergo_capture.journal.segment import segment_path
from ergo_capture.storage import Storage, StorageError, StorageFile

#: What is read at a time: at first, and at most. Why: a journal of many sessions is asked for one small frame after
#: another, each in a window of its own; who reads on is soon given much.
_FIRST_BYTES: Final = 16 << 10
_WINDOW_BYTES: Final = 1 << 20


class Window:
    """A file as a byte string of which only a stretch is in memory."""

    def __init__(self, file: StorageFile) -> None:
        self.size = file.size()
        self._limit = self.size
        self._file = file
        self._start = 0
        self._held = memoryview(b"")
        self._ahead = _FIRST_BYTES

    def end_at(self, offset: int) -> None:
        """Look at nothing behind ``offset``, and read all before it anew.

        Why: where somebody writes meanwhile, what was read before is older than what is read now.
        """
        self.size = self._limit = min(offset, self.size)
        self._start, self._held = 0, memoryview(b"")

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes from ``offset``, or fewer where the file ends.

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

    def _read(self, offset: int, wanted: int) -> bytes:
        while True:
            # Why the size each time: a batch that did not fit the disk is cut off behind what is durable.
            self.size = min(self._file.size(), self._limit)
            wanted = min(wanted, self.size - offset)
            if wanted <= 0:
                return b""
            try:
                return self._file.read_at(offset, wanted)
            except StorageError:
                # Cut off between the two calls: what is wanted of it may be there all the same.
                if self._file.size() >= offset + wanted:
                    raise

    def header(self, offset: int, segment: int) -> Header | None:
        """The valid header at ``offset``, if there is one."""
        return decode_header(self.view(offset, HEADER_BYTES), segment)

    def body(self, offset: int, header: Header) -> memoryview | None:
        """The body of the frame at ``offset``, if it is the one its header was made for."""
        if header.length > self.size - offset - HEADER_BYTES:
            return None
        body = self.view(offset + HEADER_BYTES, header.length)
        return body if header.fits(body) else None

    def __repr__(self) -> str:
        return f"<Window on {self.size} bytes, {len(self._held)} held from {self._start} on>"


def read_frames(directory: Path, positions: Iterable[Position], storage: Storage) -> Iterator[Frame]:
    """The frames at ``positions``, in that order.

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


def undecodable(frame: Frame, error: ValueError) -> JournalDamaged:
    """Return the error for a whole frame whose body is not what its kind says."""
    header = frame.header
    return JournalDamaged(
        f"read journal: frame {header.index} of batch {header.batch} holds what no daemon writes: {error}",
        op="read journal",
        hint="`ergo-capture doctor` says what is damaged",
    )
