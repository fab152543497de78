"""Opens bundle files, compressed or not, so that nobody has to know which.

Owns: ``open_binary``, ``read_text``, and what tells a compressed file.
Not here: what a bundle says (``bundle.py``, ``stream.py``), compressing one (``journal/compose.py``).

A file is compressed when it begins with zstd's magic number, whatever its name: no JSON text begins so. A
compressed file that was cut reads as a text that was cut, up to the last block of 128 KiB.
"""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import BinaryIO, Final, cast

#: How the name of a compressed file ends.
COMPRESSED_SUFFIX: Final = ".zst"
#: Most bytes that a compressed file may be expanded to in memory. Why: 10 KB can stand for 10 GB, and a plain
#: file at least has to be as large as what it costs.
MOST_IN_MEMORY: Final = 1 << 30
#: Largest window of a compressed file, and so the memory that reading one takes at most. Why this: it is what
#: the zstd tool takes without being asked twice; ours are written with one of 2 MiB.
_MOST_WINDOW: Final = 128 << 20
_MAGIC: Final = b"\x28\xb5\x2f\xfd"


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

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer has no name in 3.11
        try:
            count: int = self._reader.readinto(buffer)
        except self._trouble as error:
            raise OSError(errno.EIO, f"not sound zstd: {str(error).removeprefix('zstd decompress error: ')}") from error
        self._position += count
        return count

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
