"""Open bundle files, compressed or not, and tell what a file is that is no bundle.

A file is compressed when it begins with zstd's magic number, whatever its name: no JSON text begins so. A
compressed file that was cut reads as a text that was cut, up to the last block of 128 KiB, and then as an error.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

#: Most bytes that a compressed file may be expanded to in memory. Why: 10 KB can stand for 10 GB, and a plain
#: file at least has to be as large as what it costs.
MOST_IN_MEMORY: Final = 1 << 30
#: Largest window of a compressed file, and so the memory that reading one takes at most. Why this: it is what
#: the zstd tool takes without being asked twice; ours are written with one of 2 MiB.
_MOST_WINDOW: Final = 128 << 20
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: Bytes of the longest header of a frame (RFC 8878, 3.1.1.1).
_MOST_HEADER: Final = 18
#: The magic numbers of frames that only say how long they are (RFC 8878, 3.1.2), but for their last four bits.
_SKIPPABLE: Final = 0x184D2A50
#: Bytes of a text that ``identify_foreign`` wants to see.
HEAD_BYTES: Final = 4096

_GZIP: Final = b"\x1f\x8b"


def list_files(directory: Path) -> list[Path]:
    """Every file below a directory, sorted.

    Raises:
        OSError: one of the directories cannot be read. Why not left out: what was not looked at is not known to be well.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    return sorted(Path(parent, name) for parent, _, names in os.walk(directory, onerror=fail) for name in names)


def read_hint(error: OSError) -> str:
    """What to do where a bundle could not be read for that reason."""
    match error:
        case FileNotFoundError():
            return "check the path; `ergo-capture bundles list` prints those of a state directory"
        case PermissionError():
            return "read it as a user who may: the daemon's, one of its group, or root"
        case IsADirectoryError():
            return "name a *.capture.json file in it"
    return "check that the path is a bundle file; `ergo-capture recover` salvages a damaged one"


def open_binary(path: Path) -> BinaryIO:
    """The file's text, expanded while it is read: ``read``, and ``seek`` forward.

    Reading takes as much memory as is read at a time, and the window of a compressed file.

    Raises:
        OSError: the file cannot be opened; or, later, when it is read: it is not sound zstd.
    """
    file = path.open("rb", buffering=0)
    try:
        magic = file.read(len(_MAGIC))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, _Expanded(file) if magic == _MAGIC else file)


def read_text(path: Path) -> bytes:
    """The whole text of a file.

    Raises:
        OSError: as ``open_binary``; also where a compressed one is too large to be held in memory.
    """
    with open_binary(path) as file:
        if not isinstance(file, _Expanded):
            return file.read()
        text = b"".join(iter(lambda: file.read(min(1 << 20, MOST_IN_MEMORY + 1 - file.tell())), b""))
        if len(text) > MOST_IN_MEMORY:
            raise OSError(errno.EFBIG, f"more than {MOST_IN_MEMORY >> 30} GiB when expanded; read it as a stream")
        return text


class _Expanded(io.RawIOBase):
    """The text of a compressed file, from its beginning to its end."""

    def __init__(self, file: io.FileIO) -> None:
        import zstandard  # noqa: PLC0415 - only where a file is compressed

        super().__init__()
        self._file = file
        self._trouble = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).stream_reader(
            file, read_across_frames=True
        )
        self._position = 0
        #: Whether the file was found to end where a frame ends.
        self._checked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer has no name in 3.11
        try:
            count: int = self._reader.readinto(buffer)
        except self._trouble as error:
            raise OSError(errno.EIO, f"not sound zstd: {str(error).removeprefix('zstd decompress error: ')}") from error
        self._position += count
        if not count and len(buffer):
            self._check_end()
        return count

    def _check_end(self) -> None:
        """Raise where the file ends within a frame; the decoder says nothing of what is missing."""
        if not self._checked:
            size = self._file.seek(0, io.SEEK_END)
            end = _end_of_frames(self._file, size)
            # Why: the decoder may ask for more.
            self._file.seek(size)
            if end != size:
                raise OSError(errno.EIO, "not sound zstd: it is cut off")
            self._checked = True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on to a place that was not read yet; a text that ends before it is at its end then."""
        target = offset + self._position if whence == io.SEEK_CUR else offset
        if whence == io.SEEK_END or target < self._position:
            raise io.UnsupportedOperation("a compressed file can be read forward only")
        while self._position < target and self.read(min(1 << 20, target - self._position)):
            pass
        return self._position

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()

    def __repr__(self) -> str:
        return f"<_Expanded {self._file.name!r} at {self._position}>"


def _end_of_frames(file: io.FileIO, size: int) -> int:
    """Where the last frame of a compressed file ends, which is behind ``size`` where it is cut off (RFC 8878, 3.1)."""
    import zstandard  # noqa: PLC0415 - only where a file is compressed

    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(_MOST_HEADER)
        if int.from_bytes(head[:4], "little") & 0xFFFFFFF0 == _SKIPPABLE:
            offset += 8 + int.from_bytes(head[4:8], "little")
            continue
        try:
            checksum = 4 * zstandard.get_frame_parameters(head).has_checksum
            offset += zstandard.frame_header_size(head)
        except zstandard.ZstdError:
            return size + 1
        last = False
        while not last:
            if offset + 3 > size:
                return size + 1
            file.seek(offset)
            block = int.from_bytes(file.read(3), "little")
            last, kind = bool(block & 1), block >> 1 & 3
            # In a block of kind 1, one byte stands for many.
            offset += 3 + (1 if kind == 1 else block >> 3)
        offset += checksum
    return offset


def identify_foreign(head: bytes) -> tuple[str, str] | None:
    """What a text that begins so seems to be, and what to do with it; None where it may be a damaged bundle."""
    begin = head.lstrip(b" \t\r\n")
    if not begin:
        return "it is empty", "a bundle is never published empty: look for what wrote or copied this file"
    if begin.startswith(b"{"):
        key = begin[1:].lstrip(b" \t\r\n")
        if key.startswith((b'"event_id"', b'"type"')):
            return "these are events, and no bundle of them", "capture them with `ergo-capture send FILE`"
        if key.startswith(b'"format"') and b"manifest" in head:
            return "it is a bundle's manifest", "name the *.capture.json file beside it"
        return None
    if begin.startswith(b"["):
        # The reference reads a bundle from an array of its fields too.
        return None
    if head.startswith(_GZIP):
        return "it is compressed with gzip", "bundles are read plain or as .zst: unpack it with gunzip first"
    if _is_text(head):
        return "it is no JSON object", "name a *.capture.json file"
    return (
        "it is no text",
        "name a *.capture.json file; for the segments of a journal there is `ergo-capture doctor DIRECTORY`",
    )


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # Why not all of it: the head may end within a character.
        return error.start > len(head) - 4 and len(head) >= HEAD_BYTES
    return b"\0" not in head
