"""Write a bundle file: events and decisions that come side by side, as text, compressed if wanted."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from crc32c import crc32c

from ergo_capture.bundle.format import BundleHead, CaptureJsonStyle
from ergo_capture.bundle.reader.opening import open_binary
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import MIDDLE, encode_head, encode_tail
from ergo_capture.storage.atomic import AtomicFile, create_parents

#: Bytes read at a time.
_READ_BYTES: Final = 256 * 1024
#: Blocks that may wait to be written.
_WAITING_BLOCKS: Final = 4
#: Bytes after which the kernel is told to begin writing them, so that the sync at the end finds little to do.
_WRITE_BACK_BYTES: Final = 4 << 20
#: zstd's level: it keeps up with composing; a higher one gains little on numbers.
_LEVEL: Final = 3


class BundleWriter:
    """Write a bundle whose events and decisions come side by side; a context manager.

    In a bundle, all events precede the decisions. So the events go to the bundle's temporary file and the decisions to
    a second one, which ``finish`` copies behind them. Without ``commit``, both are removed.

    Args:
        destination: the bundle file; missing parent directories are created.
        head: what the bundle says besides its events and decisions.
        style: the layout.
        compress: ``none`` or ``zstd``.

    Raises:
        CaptureWriteError: a directory or a temporary file could not be created.
    """

    def __init__(
        self,
        destination: Path,
        head: BundleHead,
        *,
        style: CaptureJsonStyle = CaptureJsonStyle.Compact,
        compress: str = "none",
    ) -> None:
        create_parents(destination)
        self._layout = _Layout(head, style)
        with ExitStack() as undo:
            self.file = undo.enter_context(AtomicFile(destination))
            self._decisions = undo.enter_context(AtomicFile(destination))
            #: Writes the bundle's text.
            self.sink = undo.enter_context(BundleSink(self.file, compress))
            self._undo = undo.pop_all()
        self.sink.write(self._layout.head)

    def write(self, events: bytes | bytearray, decisions: bytes) -> None:
        """Append events and their decisions, as many of each; a comma precedes each element.

        Raises:
            CaptureWriteError: they, or what was written before, could not be written.
        """
        self.sink.write(self._layout.block(events))
        self._decisions.write(self._layout.block(decisions))
        self._layout.is_empty = False

    def finish(self) -> None:
        """Write the decisions behind the events, and the end of the text.

        Raises:
            CaptureWriteError: the text could not be written.
        """
        self.sink.write(self._layout.middle)
        with self._decisions.path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                self.sink.write(block)
        self.sink.write(self._layout.tail)
        self.sink.finish()
        self._decisions.abort()

    def commit(self) -> None:
        """Make the bundle durable under its name.

        Raises:
            CaptureWriteError: with the stage that failed.
        """
        self.file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


class _Layout:
    """The text around and between the elements, in either style."""

    def __init__(self, head: BundleHead, style: CaptureJsonStyle) -> None:
        #: Whether no element was written yet.
        self.is_empty = True
        self._pretty = style is CaptureJsonStyle.Pretty
        before = encode_head(head.graph_id, head.config)
        after = encode_tail(head.adapter_provenance, head.runtime_provenance, head.egress_provenance)
        if not self._pretty:
            self.head, self._middle, self._tail = before, MIDDLE, after
            return
        text = msgspec.json.format(before + MIDDLE + after, indent=2)
        # Neither key can stand in a string: quotes inside strings are escaped.
        before, rest = text.split(b'"events": []', 1)
        between, after = rest.split(b'"decisions": []', 1)
        self.head = before + b'"events": ['
        self._middle = b"]" + between + b'"decisions": ['
        self._tail = b"]" + after

    @property
    def middle(self) -> bytes:
        """What follows the events."""
        return self._closing + self._middle

    @property
    def tail(self) -> bytes:
        """What follows the decisions."""
        return self._closing + self._tail + b"\n"

    @property
    def _closing(self) -> bytes:
        return b"\n  " if self._pretty and not self.is_empty else b""

    def block(self, text: bytes | bytearray) -> bytes | bytearray:
        """Return elements of one list, each behind a comma, as they stand in the bundle."""
        if self._pretty:
            # Formatted inside an object: elements stand two levels deep in a bundle.
            within = msgspec.json.format(b'{"":[%b]}' % bytes(text[1:]), indent=2)
            text = b"," + within.removeprefix(b'{\n  "": [').removesuffix(b"\n  ]\n}")
        return text[1:] if self.is_empty else text


class BundleSink:
    """Write blocks of a text, in order, in a thread of its own.

    Hashing, compressing and writing release the interpreter, which expands the next block meanwhile.

    Args:
        file: the file; the caller commits it.
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
        """Queue a block; wait while too many are queued.

        Raises:
            CaptureWriteError: a block before it could not be written.
        """
        self._waiting.append(self._thread.submit(self._put, block))
        while len(self._waiting) > _WAITING_BLOCKS:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until every block is written.

        Raises:
            CaptureWriteError: a block could not be written.
        """
        if self._compressor is not None:
            self._waiting.append(self._thread.submit(self._end))
        while self._waiting:
            self._waiting.popleft().result()

    def read_back(self) -> None:
        """Compare what the file holds with what was written.

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
            raise self._unverified(error.strerror or str(error)) from error
        if (checksum, size) != (self._checksum, self.size):
            raise self._unverified("what was read back is not what was written")

    def _unverified(self, reason: str) -> ErgoCaptureError:
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


def _compressor() -> Any:
    import zstandard  # noqa: PLC0415 - only where it is wanted

    # With a checksum every reader finds out that a file has rotted, the zstd tool included.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
