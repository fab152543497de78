"""Writes the blocks of a bundle's text, compressed if that is wanted, and reads them back."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Self

from crc32c import crc32c

from ergo_capture.bundle.reader.opening import open_binary
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage.atomic import AtomicFile

#: Bytes read at a time.
_READ_BYTES: Final = 256 * 1024
#: Blocks that may wait to be written.
_WAITING_BLOCKS: Final = 4
#: Bytes after which the system is told to begin writing them, so that the sync at the end finds little to do.
_WRITE_BACK_BYTES: Final = 4 << 20
#: zstd's level. Why this one: it keeps up with composing; a higher one gains little on numbers.
_LEVEL: Final = 3


class BundleSink:
    """Writes blocks, in order, in a thread of its own.

    Why a thread: hashing, compressing and writing let go of the interpreter, which meanwhile expands the next
    block.

    Args:
        file: where they go; the caller commits it.
        compress: ``none`` or ``zstd``.
    """

    def __init__(self, file: AtomicFile, compress: str = "none") -> None:
        #: Bytes of the text.
        self.size = 0
        self._checksum = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._file_hash = hashlib.sha256()
        self._compressor = _compressor() if compress == "zstd" else None
        self._thread = ThreadPoolExecutor(1, "compose")
        self._waiting: deque[Future[None]] = deque()

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return self._hash.hexdigest()

    @property
    def file_size(self) -> int:
        """Bytes of the file."""
        return self._file.bytes_written

    @property
    def file_digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return self.digest if self._compressor is None else self._file_hash.hexdigest()

    def write(self, block: bytes | bytearray) -> None:
        """Queue a block; waits while too many are queued.

        Raises:
            CaptureWriteError: a block before it could not be written.
        """
        self._waiting.append(self._thread.submit(self._put, block))
        while len(self._waiting) > _WAITING_BLOCKS:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until every block is written.

        Raises:
            CaptureWriteError: one could not be.
        """
        if self._compressor is not None:
            self._waiting.append(self._thread.submit(self._end))
        while self._waiting:
            self._waiting.popleft().result()

    def read_back(self) -> None:
        """Compare what the file holds with what was written, before it gets its name.

        Raises:
            ErgoCaptureError: they differ, or the file cannot be read.
        """
        checksum = size = 0
        try:
            with open_binary(self._file.path) as file:
                while block := file.read(_READ_BYTES):
                    checksum = crc32c(block, checksum)
                    size += len(block)
        except OSError as error:
            raise self._not_what_was_written(error.strerror or str(error)) from error
        if (checksum, size) != (self._checksum, self.size):
            raise self._not_what_was_written("what was read back is not what was written")

    def _not_what_was_written(self, reason: str) -> ErgoCaptureError:
        return ErgoCaptureError(
            f"verify bundle '{self._file.path}': {reason}",
            op="verify bundle",
            path=self._file.path,
            hint="check the disk; the journal still holds the session",
        )

    def _put(self, block: bytes | bytearray) -> None:
        self._hash.update(block)
        self._checksum = crc32c(block, self._checksum)
        self.size += len(block)
        self._store(block if self._compressor is None else self._compressor.compress(block))

    def _end(self) -> None:
        assert self._compressor is not None
        self._store(self._compressor.flush())

    def _store(self, data: bytes | bytearray) -> None:
        if data:
            self._file.write(data)
            self._file.write_back(_WRITE_BACK_BYTES)
            if self._compressor is not None:
                self._file_hash.update(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        return f"<BundleSink {self._file.destination}, {self.size} bytes of text>"


def _compressor() -> Any:
    import zstandard  # noqa: PLC0415 - only where it is wanted

    # Why the checksum: a file that rots is found out by whoever reads it, the zstd tool included.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
