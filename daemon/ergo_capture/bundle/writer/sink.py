"""Write a bundle file from the texts of events and their decisions, compressed if wanted."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from crc32c import crc32c

from ergo_capture.bundle.format import BundleHead, CaptureJsonStyle
from ergo_capture.bundle.reader.index import DIGEST_DIGITS, INDEX_FORMAT, BundleIndex, IndexBlock, Piece
from ergo_capture.bundle.writer.elements import BlockRule, Elements
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import MIDDLE, encode_head, encode_tail
from ergo_capture.storage.atomic import AtomicFile, create_parents

Buffer = bytes | bytearray | memoryview

#: Bytes read at a time.
_READ_BYTES: Final = 256 * 1024
#: How many blocks may wait to be written.
_WAITING_BLOCKS: Final = 4
#: Bytes after which the kernel is told to begin writing them, so that the sync at the end finds little to do. The syncs of
#: the journal wait for them: with 4 MiB, 1% of the commits beside a composition took 6 ms instead of 3.
_WRITE_BACK_BYTES: Final = 1 << 20
#: zstd's level: it keeps up with composing; a higher one gains little on numbers.
_LEVEL: Final = 3


class BundleWriter:
    """Writes a bundle from events and their decisions, given together; a context manager.

    In a bundle, all events precede the decisions. So the events go to the bundle's temporary file and the decisions to
    a second one, which ``finish`` appends to the first. Without ``commit``, both are removed.

    Args:
        destination: the bundle file; missing parent directories are created.
        head: the fields of the bundle other than events and decisions.
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
        self._decisions_checksum = 0
        #: The blocks of the index, in the lists and in the decisions' file.
        self._event_blocks, self._decision_blocks = BlockRule(), BlockRule()
        self._decision_starts: list[int] = []
        self._layout = _Layout(head, style)
        with ExitStack() as undo:
            self.file = undo.enter_context(AtomicFile(destination))
            self._decisions = undo.enter_context(AtomicFile(destination))
            #: Writes the bundle's text.
            self.sink = undo.enter_context(BundleSink(self.file, compress))
            self._undo = undo.pop_all()
        self.sink.write(self._layout.head, [0])

    def write(self, events: Elements, decisions: Elements) -> None:
        """Append events and the same number of decisions.

        Raises:
            CaptureWriteError: they, or earlier ones, could not be written.
        """
        text, begins = self._layout.block(events.text, self._event_blocks.divide(events))
        self.sink.write(text, begins)
        text, begins = self._layout.block(decisions.text, self._decision_blocks.divide(decisions))
        written = self._decisions.bytes_written
        self._decision_starts += [written + at for at in begins]
        self._decisions.write(text)
        self._decisions_checksum = crc32c(text, self._decisions_checksum)
        self._layout.is_empty &= not events.number

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary files."""
        return self.sink.file_size + self._decisions.bytes_written

    def finish(self) -> None:
        """Write the decisions after the events, and the end of the text.

        Raises:
            CaptureWriteError: the text could not be written.
            ErgoCaptureError: the decisions that were read back are not the ones that were written.
        """
        self.sink.write(self._layout.middle, [0])
        checksum = at = 0
        starts = deque(self._decision_starts)
        with self._decisions.path.open("rb", buffering=0) as file:
            while block := file.read(_READ_BYTES):
                begins = []
                while starts and starts[0] < at + len(block):
                    begins.append(starts.popleft() - at)
                at += len(block)
                checksum = crc32c(block, checksum)
                self.sink.write(block, begins)
        if checksum != self._decisions_checksum:
            raise not_as_written(self._decisions.path)
        self.sink.write(self._layout.tail, [0])
        self.sink.finish()
        self._decisions.abort()

    def index(self, ids: str | None) -> BundleIndex:
        """Return the index of the finished bundle; ``ids`` is the index's field."""
        pieces = iter(self.sink.pieces)

        def blocks(rule: BlockRule) -> list[IndexBlock]:
            return [IndexBlock(first, next(pieces)) for first in rule.firsts]

        return BundleIndex(
            format=INDEX_FORMAT,
            head=next(pieces),
            events=blocks(self._event_blocks),
            middle=next(pieces),
            decisions=blocks(self._decision_blocks),
            tail=next(pieces),
            ids=ids,
        )

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
        # Neither key can occur in a string: quotes inside strings are escaped.
        before, _, rest = text.partition(b'"events": []')
        between, _, after = rest.partition(b'"decisions": []')
        self.head = before + b'"events": ['
        self._middle = b"]" + between + b'"decisions": ['
        self._tail = b"]" + after

    @property
    def middle(self) -> bytes:
        """The text between the events and the decisions."""
        return self._closing + self._middle

    @property
    def tail(self) -> bytes:
        """The text after the decisions."""
        return self._closing + self._tail + b"\n"

    @property
    def _closing(self) -> bytes:
        return b"\n  " if self._pretty and not self.is_empty else b""

    def block(self, text: bytes | bytearray, begins: list[int]) -> tuple[Buffer, list[int]]:
        """Return elements of a list, each after a comma, in the bundle's layout; the first of the list has none.

        Args:
            text: the elements, each after a comma.
            begins: the places in the text at which blocks begin.

        Returns:
            The text in the layout, and the places in it at which the blocks begin.
        """
        first = 1 if self.is_empty and text else 0
        if not self._pretty:
            return memoryview(text)[first:], [max(at - first, 0) for at in begins]
        pieces = [_pretty(text[start:end]) for start, end in pairwise([0, *begins, len(text)])]
        ends = list(accumulate(map(len, pieces)))
        return b"".join(pieces)[first:], [max(at - first, 0) for at in ends[:-1]]


def _pretty(text: bytes | bytearray) -> bytes:
    if not text:
        return b""
    # Formatted inside an object: elements stand two levels deep in a bundle.
    within = msgspec.json.format(b'{"":[%b]}' % bytes(text[1:]), indent=2)
    return b"," + within.removeprefix(b'{\n  "": [').removesuffix(b"\n  ]\n}")


class BundleSink:
    """Writes blocks of a text, in order, in a thread of its own.

    Hashing, compressing and writing release the interpreter lock, so that the next block is expanded meanwhile.

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
        self._thread, self._reader = _new_threads()
        self._waiting: deque[Future[None]] = deque()
        self._reading: Future[None] | None = None
        #: The pieces of the text, the last one only after ``finish``.
        self.pieces: list[Piece] = []
        #: Where the current piece begins in the text and in the file, and its hash; None before the first one.
        self._piece: tuple[int, int] | None = None
        self._piece_hash = hashlib.sha256()
        self._read_back = _ReadBack(file.path, is_compressed=self._compressor is not None)
        #: Bytes of the file at the last call of ``read_back_along``.
        self._mark = 0

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

    def write(self, block: Buffer, begins: Sequence[int] = ()) -> None:
        """Queue a block; wait while too many are queued.

        Args:
            block: the next part of the text.
            begins: the places in it at which pieces of the index begin and, if the file is compressed, frames of zstd.

        Raises:
            CaptureWriteError: a block before it could not be written.
        """
        self._waiting.append(self._thread.submit(self._put, block, begins))
        while len(self._waiting) > _WAITING_BLOCKS:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until every block is written.

        Raises:
            CaptureWriteError: a block could not be written.
        """
        self._waiting.append(self._thread.submit(self._end))
        self.drain()

    def drain(self) -> None:
        """Wait until every block so far is written; a compressor may hold back some of their text.

        Raises:
            CaptureWriteError: a block could not be written.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def read_back_along(self) -> None:
        """Read back the blocks that were written a while ago, so that ``read_back`` has less to do; do not wait.

        Raises:
            ErgoCaptureError: the file could not be read.
        """
        written = self._file.bytes_written
        if written - self._mark >= _WRITE_BACK_BYTES:
            self._join_reader()
            self._reading = self._reader.submit(self._read_back.advance, self._mark)
            self._mark = written

    def _join_reader(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.result()

    def read_back(self) -> None:
        """Compare the content of the file with the text that was written.

        Raises:
            ErgoCaptureError: they differ, or the file cannot be read.
        """
        self._join_reader()
        self._read_back.finish(self._checksum, self.size)

    def renew_threads(self) -> None:
        """Start other threads, which have the caller's priority: a thread inherits it from the one that starts it."""
        self._thread.shutdown()
        self._reader.shutdown()
        self._thread, self._reader = _new_threads()

    def _put(self, block: Buffer, begins: Sequence[int]) -> None:
        # Each call that releases the interpreter lock may wait for it afterwards: hash and write the block as a whole.
        self._hash.update(block)
        self._checksum = crc32c(block, self._checksum)
        view = memoryview(block)
        for number, (start, end) in enumerate(pairwise([0, *begins, len(view)])):
            if number:
                self._begin_piece()
            part = view[start:end]
            if self._piece is not None:
                self._piece_hash.update(part)
            self.size += len(part)
            if self._compressor is not None:
                self._store(self._compressor.compress(part))
        if self._compressor is None:
            self._store(block)

    def _begin_piece(self) -> None:
        if self._compressor is not None and self._piece is not None:
            self._store(self._compressor.flush())
            self._compressor = _compressor()
        self._end_piece()
        offset = self.size if self._compressor is None else self._file.bytes_written
        self._piece, self._piece_hash = (self.size, offset), hashlib.sha256()

    def _end_piece(self) -> None:
        if self._piece is not None:
            self.pieces.append(Piece(*self._piece, self._piece_hash.hexdigest()[:DIGEST_DIGITS]))

    def _end(self) -> None:
        if self._compressor is not None:
            self._store(self._compressor.flush())
        self._end_piece()

    def _store(self, data: Buffer) -> None:
        if data:
            self._file.write(data)
            self._file.write_back(_WRITE_BACK_BYTES)
            if self._compressor is not None:
                self._file_hash.update(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._reader.shutdown(cancel_futures=True)


class _ReadBack:
    """Reads a file back while it is written, up to a given end, and computes the checksum of its text."""

    def __init__(self, path: Path, *, is_compressed: bool) -> None:
        self._path = path
        self._offset = self._size = self._checksum = 0
        self._decompressor = _decompressor() if is_compressed else None
        #: The frame that is being decompressed.
        self._frame: Any = self._decompressor and self._decompressor.decompressobj()

    def advance(self, end: int) -> None:
        """Read up to ``end``; advise the system to read from the disk rather than from its cache.

        Raises:
            ErgoCaptureError: the file cannot be read.
        """
        self._read(end)

    def finish(self, checksum: int, size: int) -> None:
        """Read the rest, and compare the text's checksum and size with those that were written.

        Raises:
            ErgoCaptureError: they differ, or the file cannot be read.
        """
        self._read(None)
        if self._frame is not None and not self._frame.eof:
            raise not_as_written(self._path, "not sound zstd: it is cut off")
        if (checksum, size) != (self._checksum, self._size):
            raise not_as_written(self._path)

    def _read(self, end: int | None) -> None:
        """Read up to ``end``, from the disk; None reads the rest, of which the end is still in the cache."""
        try:
            with self._path.open("rb", buffering=0) as file:
                if end is not None:
                    with suppress(OSError):
                        os.posix_fadvise(file.fileno(), self._offset, end - self._offset, os.POSIX_FADV_DONTNEED)
                file.seek(self._offset)
                while block := file.read(_READ_BYTES if end is None else min(_READ_BYTES, end - self._offset)):
                    self._offset += len(block)
                    for text in (block,) if self._decompressor is None else self._decompress(block):
                        self._checksum = crc32c(text, self._checksum)
                        self._size += len(text)
        except OSError as error:
            raise not_as_written(self._path, error.strerror or str(error)) from error

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        import zstandard  # noqa: PLC0415 - only where it is wanted

        assert self._decompressor is not None
        try:
            while data:
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                yield self._frame.decompress(data)
                data = self._frame.unused_data
        except zstandard.ZstdError as error:
            raise not_as_written(self._path, f"not sound zstd: {error}") from error


def not_as_written(
    path: Path, reason: str = "the text that was read back is not the one that was written"
) -> ErgoCaptureError:
    """Return the error for a temporary file that does not hold what was written to it."""
    return ErgoCaptureError(
        f"verify bundle '{path}': {reason}",
        op="verify bundle",
        path=path,
        hint="check the disk; the journal still holds the session",
    )


def _new_threads() -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
    return ThreadPoolExecutor(1, "compose"), ThreadPoolExecutor(1, "read-back")


def _decompressor() -> Any:
    import zstandard  # noqa: PLC0415 - only where it is wanted

    return zstandard.ZstdDecompressor()


def _compressor() -> Any:
    import zstandard  # noqa: PLC0415 - only where it is wanted

    # With a checksum every reader, the zstd tool included, notices that a file has rotted.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
