"""Open bundle files, compressed or not, and identify files that are not bundles.

A file is compressed if it begins with a frame of zstd, under any name: no JSON text begins so. Files of pzstd begin
with a skippable frame. A compressed file that is cut or damaged can be read up to the damage; then reading raises an
error.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

from ergo_capture.errors import ErgoCaptureError

#: Largest text of a compressed file that is held in memory, in bytes: 10 KB can expand to 10 GB, while a plain file
#: takes no more memory than disk.
MAX_IN_MEMORY: Final = 1 << 30
#: How many bytes of a text ``identify_foreign`` needs.
HEAD_BYTES: Final = 4096
#: Largest window of a compressed file, in bytes, and so the most memory that reading one takes. The zstd tool takes the
#: same without ``--long``; our bundles are written with a window of 2 MiB.
_MAX_WINDOW: Final = 128 << 20
#: Bytes read at a time.
_READ_BYTES: Final = 1 << 20
#: More than zstandard's stream reader reads at a time, in bytes.
_NEAR_BYTES: Final = 1 << 18
#: The text of as many compressed bytes is at most 32 MiB: a block has at least 4 bytes, and at most 128 KiB of text.
_SMALL_BYTES: Final = 1 << 10
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP: Final = b"\x1f\x8b"
#: Longest header of a frame, in bytes (RFC 8878, 3.1.1.1).
_MAX_HEADER: Final = 18
#: The magic numbers of skippable frames, without their last four bits (RFC 8878, 3.1.2).
_SKIPPABLE: Final = 0x184D2A50
_BLANK: Final = b" \t\r\n"
_HINT: Final = (
    "check that the file is a whole capture bundle of version v3; a cut one can be salvaged with `ergo-capture recover`"
)


class BundleFormatError(ErgoCaptureError, ValueError):
    """A text is not a capture bundle; the message names the field."""


def list_files(directory: Path, is_wanted: Callable[[str], bool] = lambda _name: True) -> list[Path]:
    """Return every file below a directory, sorted; links to directories are followed, each directory once.

    Args:
        directory: the directory.
        is_wanted: whether a file is returned, by its name.

    Raises:
        OSError: a directory cannot be read. It is not left out, because its bundles would then pass for verified.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    files, met = [], {_identity(directory)}
    for parent, folders, names in os.walk(directory, onerror=fail, followlinks=True):
        files += [Path(parent, name) for name in filter(is_wanted, names)]
        # Links come last, so that a directory that is also below this one is listed under its own name.
        inside = sorted((Path(parent, name) for name in folders), key=lambda path: (path.is_symlink(), path))
        folders.clear()
        for folder in inside:
            if (identity := _identity(folder)) not in met:
                met.add(identity)
                folders.append(folder.name)
    return sorted(files)


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def open_binary(path: Path) -> BinaryIO:
    """Open a bundle file; ``read`` returns its text, decompressed, and ``seek`` goes forward only.

    Reading takes as much memory as the bytes asked for, and the window of a compressed file.

    Raises:
        OSError: the file cannot be opened. Reading raises it too, if the file is not sound zstd.
    """
    file = path.open("rb", buffering=0)
    try:
        magic = file.read(len(_ZSTD))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, _ZstdText(file) if magic == _ZSTD or _is_skippable(magic) else file)


def is_compressed(path: Path) -> bool:
    """Return whether a bundle file is compressed.

    Raises:
        OSError: the file cannot be read.
    """
    with open_binary(path) as file:
        return isinstance(file, _ZstdText)


def identity_of(file: BinaryIO) -> tuple[int, int, int]:
    """Return device, inode and size of an open file, to tell it from another one that takes its name."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size


def read_text(path: Path) -> bytes:
    """Return the whole text of a bundle file.

    Raises:
        OSError: as ``open_binary``; also if a compressed file's text is too large for memory.
    """
    with open_binary(path) as file:
        if not isinstance(file, _ZstdText):
            return file.read()
        text = b"".join(iter(lambda: file.read(min(1 << 20, MAX_IN_MEMORY + 1 - file.tell())), b""))
        if len(text) > MAX_IN_MEMORY:
            raise OSError(errno.EFBIG, f"more than {MAX_IN_MEMORY >> 30} GiB when expanded; read it as a stream")
        return text


def text_sha256(path: Path) -> str:
    """Return the SHA-256 of a bundle file's text, in hex.

    Raises:
        ErgoCaptureError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_binary(path) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


class _ZstdText(io.RawIOBase):
    """The text of a compressed file, read from its beginning to its end."""

    def __init__(self, file: io.FileIO) -> None:
        import zstandard  # noqa: PLC0415 - only where a file is compressed

        super().__init__()
        self._file = file
        self._zstd_error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._reader = self._decompressor.stream_reader(file, read_across_frames=True)
        self._position = 0
        #: The error that reading raises at the damage, once it was reached, and the text before it.
        self._damage: OSError | None = None
        self._rest = io.BytesIO()
        #: Whether the file is known to end where a frame ends.
        self._checked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer has no name in 3.11
        if self._damage is not None:
            return self._read_rest(buffer, self._damage)
        try:
            count: int = self._reader.readinto(buffer)
        except self._zstd_error as error:
            message = f"not sound zstd: {str(error).removeprefix('zstd decompress error: ')}"
            self._damage = OSError(errno.EIO, message)
            self._rest = io.BytesIO(self._decode_to_damage())
            return self._read_rest(buffer, self._damage)
        self._position += count
        if not count and len(buffer):
            self._check_end()
        return count

    def _read_rest(self, buffer: bytearray | memoryview, damage: OSError) -> int:
        count = self._rest.readinto(buffer)
        if not count and len(buffer):
            raise damage
        self._position += count
        return count

    def _decode_to_damage(self) -> bytes:
        """Return the text from the current position to the damage; the reader dropped that text when it raised."""
        # The damage is in the bytes that were read last.
        near = self._file.tell() - _NEAR_BYTES
        self._file.seek(0)
        frame = self._decompressor.decompressobj()
        text, skip, offset = bytearray(), self._position, 0
        # Read byte by byte near the damage: a piece that reaches it gives no text at all.
        while data := self._file.read(1 if offset >= near else _SMALL_BYTES):
            offset += len(data)
            try:
                while data:
                    if frame.eof:
                        frame = self._decompressor.decompressobj()
                    piece = frame.decompress(data)
                    data = frame.unused_data if frame.eof else b""
                    text += piece[skip:]
                    skip = max(0, skip - len(piece))
            except self._zstd_error:
                break
        return bytes(text)

    def _check_end(self) -> None:
        """Raise OSError if the file ends within a frame: the decoder does not report it."""
        if not self._checked:
            size = self._file.seek(0, io.SEEK_END)
            end = _end_of_frames(self._file, size)
            # Restore the position, at which the decoder may continue.
            self._file.seek(size)
            if end != size:
                raise OSError(errno.EIO, "not sound zstd: it is cut off")
            self._checked = True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip forward to a position of the text, or to its end if it is shorter."""
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


def _is_skippable(head: bytes) -> bool:
    return int.from_bytes(head[:4], "little") & 0xFFFFFFF0 == _SKIPPABLE


def _end_of_frames(file: io.FileIO, size: int) -> int:
    """Return the offset after a compressed file's last frame, which is above ``size`` where it is cut (RFC 8878, 3.1)."""
    import zstandard  # noqa: PLC0415 - only where a file is compressed

    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(_MAX_HEADER)
        if _is_skippable(head):
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
            # A block of kind 1 is one byte, to be repeated.
            offset += 3 + (1 if kind == 1 else block >> 3)
        offset += checksum
    return offset


# --- errors ---


def unreadable(path: Path, error: OSError) -> ErgoCaptureError:
    """Return the error for a bundle file that cannot be read."""
    match error:
        case FileNotFoundError():
            hint = "check the path; `ergo-capture bundles list` prints those of a state directory"
        case PermissionError():
            hint = "read it as a user who may: the daemon's, one of its group, or root"
        case IsADirectoryError():
            hint = "name a *.capture.json file in it"
        case _:
            hint = "check that the path is a bundle file; `ergo-capture recover` salvages a damaged one"
    return ErgoCaptureError(
        f"read capture bundle '{path}': {error.strerror or error}", op="read capture bundle", path=path, hint=hint
    )


def malformed(path: Path | None, head: bytes, message: str) -> BundleFormatError:
    """Return the error for a text that is not a bundle.

    Args:
        path: the text's file; None for a text in memory.
        head: the text's first ``HEAD_BYTES`` bytes.
        message: what is wrong; replaced if ``head`` shows that the text is of another kind.
    """
    message, hint = identify_foreign(head) or (message, _HINT)
    name = "" if path is None else f" '{path}'"
    return BundleFormatError(f"read capture bundle{name}: {message}", op="read capture bundle", path=path, hint=hint)


def identify_foreign(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a text that begins with ``head``, and a hint; None if it may be a bundle, sound or damaged."""
    begin = head.lstrip(_BLANK)
    if not begin:
        return "it is empty", "a bundle is never published empty: look for what wrote or copied this file"
    if begin.startswith(b"{"):
        key = begin[1:].lstrip(_BLANK)
        if key.startswith((b'"event_id"', b'"type"')):
            return "these are events, and no bundle of them", "capture them with `ergo-capture send FILE`"
        if key.startswith(b'"format"') and b"manifest" in head:
            return "it is a bundle's manifest", "name the *.capture.json file beside it"
        return None
    if begin.startswith(b"["):
        # It may be a bundle: the reference also reads one from an array of its fields.
        return None
    if head.startswith(BOM_UTF8):
        return "it begins with a byte order mark, as some editors write it", "remove it: `tail -c +4 FILE > NEW`"
    if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "it is UTF-16", "bundles are UTF-8: use the file as it was published, or convert it with iconv"
    if head.startswith(_GZIP):
        return "it is compressed with gzip", "bundles are read plain or as .zst: unpack it with gunzip first"
    if _is_text(head):
        return "it is not a JSON object", "name a *.capture.json file"
    return (
        "it is not text",
        "name a *.capture.json file; for the segments of a journal there is `ergo-capture doctor DIRECTORY`",
    )


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The head may end within a character.
        return error.start > len(head) - 4 and len(head) >= HEAD_BYTES
    return b"\0" not in head
