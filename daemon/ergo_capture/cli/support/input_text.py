"""Read the text of a file or pipe: compressed or not, with or without a byte order mark.

Gzip and zstd are recognized by their first bytes, not by the name. A few bytes of either can expand to gigabytes, so
the text comes in pieces of bounded size.
"""

from __future__ import annotations

import errno
import sys
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

#: Bytes read at a time.
READ_BYTES: Final = 1 << 18
#: Largest text that ``read_input`` returns, in bytes.
MAX_BYTES: Final = 1 << 30
#: Largest piece of decompressed text, in bytes; a piece of newlines has as many lines.
_PIECE_BYTES: Final = 1 << 18
#: Bytes that tell the forms of input apart.
_MAGIC_BYTES: Final = 4
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
#: The last three bytes of a skippable frame's magic number; pzstd begins with one.
_SKIPPABLE: Final = b"\x2a\x4d\x18"
#: zlib's ``wbits`` for a gzip member with its header and checksum.
_MEMBER: Final = 31
#: Largest window of zstd, in bytes; the zstd tool takes the same without ``--long``.
_MAX_WINDOW: Final = 128 << 20


class InputText:
    """Turns the bytes of an input into pieces of its text."""

    def __init__(self) -> None:
        self._head = b""
        self._frames: _Frames | None = None
        self._begun = False
        self._text_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the text of the next bytes.

        Raises:
            OSError: they are not sound gzip or zstd, or the text is UTF-16.
        """
        if not self._begun:
            self._head += data
            if len(self._head) < _MAGIC_BYTES:
                return
            data = self._begin()
        yield from self._text(data)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest of the text at the end of the input.

        Raises:
            OSError: as ``feed``; also if the input is cut off.
        """
        if not self._begun:
            yield from self._text(self._begin())
        if self._frames is not None:
            self._frames.finish()

    def _begin(self) -> bytes:
        self._begun, head = True, self._head
        self._frames = _frames_of(head)
        return head

    def _text(self, data: bytes) -> Iterator[bytes]:
        for piece in [data] if self._frames is None else self._frames.feed(data):
            if self._text_begun or not piece:
                yield piece
                continue
            self._text_begun = True
            if piece.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                raise OSError(errno.EILSEQ, "it is UTF-16; convert it to UTF-8, for example with iconv")
            yield piece.removeprefix(BOM_UTF8)


class _Decompressor(Protocol):
    """The common interface of zlib's and zstandard's decompressors of one member or frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Frames:
    """Members of gzip or frames of zstd, one after the other.

    Args:
        begin: returns a decompressor for the next one.
        slice_bytes: bytes that are decompressed at a time.
        padding: bytes that may follow a member or frame.
        errors: the exceptions that ``begin`` and its objects raise.
    """

    def __init__(
        self, begin: Callable[[], _Decompressor], slice_bytes: int, padding: bytes, errors: tuple[type[Exception], ...]
    ) -> None:
        self._new, self._slice_bytes, self._padding, self._errors = begin, slice_bytes, padding, errors
        self._frame = begin()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the text of the next bytes."""
        pieces: list[bytes] = []
        size = 0
        for start in range(0, len(data), self._slice_bytes):
            rest = data[start : start + self._slice_bytes]
            while rest:
                if self._frame.eof:
                    rest = rest.lstrip(self._padding) if self._padding else rest
                    if not rest:
                        break
                    self._frame = self._new()
                try:
                    piece = self._frame.decompress(rest)
                except self._errors as error:
                    raise OSError(errno.EIO, f"it is not soundly compressed: {error}") from error
                rest = self._frame.unused_data if self._frame.eof else b""
                pieces.append(piece)
                size += len(piece)
            if size >= _PIECE_BYTES:
                yield from _cut(b"".join(pieces))
                pieces, size = [], 0
        if size:
            yield b"".join(pieces)

    def finish(self) -> None:
        """Raise OSError if the last frame is cut off."""
        if not self._frame.eof:
            raise OSError(errno.EIO, "the compressed file is cut off before its end")


def _cut(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), _PIECE_BYTES):
        yield text[start : start + _PIECE_BYTES]


def _frames_of(head: bytes) -> _Frames | None:
    """Return the decompressor for a file that begins with ``head``; None if it is not compressed."""
    if head.startswith(_GZIP):
        # Deflate expands a byte to at most 1032.
        return _Frames(lambda: zlib.decompressobj(_MEMBER), 1 << 10, b"\0", (zlib.error,))
    if head.startswith(_ZSTD) or (head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50):
        import zstandard  # noqa: PLC0415 - only where a file is compressed

        # A block of zstd has at least 4 bytes, and expands to at most 128 KiB.
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return _Frames(decompressor.decompressobj, 32, b"", (zstandard.ZstdError,))
    return None


def read_input(name: str) -> bytes:
    """Return the whole text of a file, or of standard input for ``-``.

    Raises:
        OSError: it cannot be read, or is larger than MAX_BYTES.
    """
    if name == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        return _read_whole(sys.stdin.buffer)
    with Path(name).open("rb") as file:
        return _read_whole(file)


def _read_whole(file: BinaryIO) -> bytes:
    text, pieces, size = InputText(), [], 0
    for block in iter(lambda: file.read(READ_BYTES), b""):
        for piece in text.feed(block):
            size += len(piece)
            if size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES >> 30} GiB")
            pieces.append(piece)
    return b"".join([*pieces, *text.finish()])
