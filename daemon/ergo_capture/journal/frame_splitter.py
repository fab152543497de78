"""Cuts a segment into frames, and into the stretches between them where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.findings import Damage
from ergo_capture.journal.frame import ALIGNMENT, FORMAT_VERSION, HEADER_BYTES, MAGIC, FrameKind, Header, decode_header
from ergo_capture.journal.reader import Position, Window

_BLOCK: Final = 1 << 20


class Whole(NamedTuple):
    """A whole frame; the body only where the scan itself reads it."""

    header: Header
    position: Position
    body: bytes


class Bad(NamedTuple):
    """A bad stretch; with the header, where it is that of one frame whose body is bad."""

    header: Header | None
    damage: Damage


def pieces(window: Window, path: Path, sequence: int, file_bytes: int) -> Iterator[Bad | Whole]:
    """Every frame of the segment in order, and every stretch where there is none.

    Args:
        window: the segment; it may end before the file does.
        path: the segment's, for errors.
        sequence: the segment's.
        file_bytes: bytes of the file.

    Raises:
        JournalError: a newer version wrote it.
        StorageError: the segment cannot be read.
    """
    offset, end = 0, None
    while offset < window.size:
        header = window.header(offset, sequence)
        if header is None:
            end = end_of(window) if end is None else end
            if offset >= end:
                return
            found = _next_header(window, offset + ALIGNMENT, sequence)
            stop = end if found is None else found
            yield Bad(None, Damage(sequence, offset, stop - offset, "there is no frame"))
            if found is None:
                return
            offset = found
            continue
        if header.version > FORMAT_VERSION:
            raise newer(path, f"its format version is {header.version}, and this program reads up to {FORMAT_VERSION}")
        body = window.body(offset, header)
        if body is None:
            size = min(header.size, file_bytes - offset)
            sessions = [header.session] if header.session else []
            yield Bad(header, Damage(sequence, offset, size, "a frame's body is not what was written", sessions))
        else:
            read_here = header.kind == FrameKind.SEGMENT
            yield Whole(header, Position(sequence, offset), bytes(body) if read_here else b"")
        offset += header.size


def newer(path: Path, reason: str) -> JournalError:
    """What a segment is refused with that holds what only a newer program understands."""
    return JournalError(
        f"read journal segment '{path}': {reason}",
        op="read journal",
        path=path,
        hint="start the newer ergo-capture that wrote it",
    )


def end_of(window: Window) -> int:
    """The offset after the last byte that is not zero."""
    stop = window.size
    while stop:
        start = max(0, stop - _BLOCK)
        written = bytes(window.view(start, stop - start)).rstrip(b"\0")
        if written:
            return start + len(written)
        stop = start
    return 0


def _next_header(window: Window, offset: int, sequence: int) -> int | None:
    """The next offset, a multiple of 8, with a header on it that has the right checksum."""
    stamp = sequence.to_bytes(8, "little")
    while offset + HEADER_BYTES <= window.size:
        block = bytes(window.view(offset, _BLOCK))
        last = len(block) - HEADER_BYTES
        at = block.find(MAGIC)
        while 0 <= at <= last:
            # Why the stamp before the checksum: text full of magics costs next to nothing.
            if (
                at % ALIGNMENT == 0
                and block[at + 8 : at + 16] == stamp
                and decode_header(block[at : at + HEADER_BYTES], sequence) is not None
            ):
                return offset + at
            at = block.find(MAGIC, at + 1)
        # Why not the whole block: a header may lie across its end.
        offset += last // ALIGNMENT * ALIGNMENT + ALIGNMENT
    return None
