"""The index beside a bundle, ``SESSION.index.json``: the places of blocks of its elements, each with a digest.

Its hash is in the manifest. A block is used only if its digest matches; reading blocks proves nothing about the rest of
the bundle. A bundle without an index, or with one that is not its manifest's, is read from its beginning.
"""

from __future__ import annotations

import hashlib
import io
import sys
from array import array
from base64 import b64decode
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from zlib import crc32

import msgspec

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import index_path, manifest_path
from ergo_capture.bundle.reader.elements import DECISIONS, EVENTS, Block, ElementError, ListReader, read_elements
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.bundle.reader.outline import Span
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.plain_file import open_plain

INDEX_FORMAT: Final = "ergo-capture-index.v1"
#: Digits of a digest: the first ones of a SHA-256.
DIGEST_DIGITS: Final = 32
#: Largest index that is read, in bytes.
_MAX_BYTES: Final = 16 << 20
_READ_BYTES: Final = 256 << 10


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of the bundle's text, which ends where the next one begins."""

    #: The offsets of its beginning in the text and in the file; in a compressed file, a frame of zstd begins there.
    text: int
    file: int
    #: The first digits of its SHA-256.
    digest: str


class IndexBlock(msgspec.Struct, frozen=True, array_like=True):
    """A piece that holds elements; a comma precedes each one but the list's first."""

    #: Number of its first element in the list.
    first: int
    piece: Piece


class BundleIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an index: the pieces of a bundle's text, in order."""

    format: str
    #: The text before the events, between the lists, and after the decisions.
    head: Piece
    events: list[IndexBlock]
    middle: Piece
    decisions: list[IndexBlock]
    tail: Piece
    #: For each event, the lower two bytes of the CRC-32 of its id, in base64, little-endian; None if too many.
    ids: str | None = None


class IndexReference(msgspec.Struct, frozen=True):
    """The size and hash of the index, as a manifest holds them."""

    bytes: int
    sha256: str


def read_index(bundle: Path, manifest: Manifest) -> BundleIndex | None:
    """Return the index with the hash in the manifest; None if there is none, or if the bundle has another size."""
    try:
        reference = msgspec.convert(manifest.index, IndexReference)
        if bundle.name != manifest.bundle or bundle.stat().st_size != manifest.stored[0]:
            return None
        with open_plain(index_path(bundle)) as file:
            text = file.read(_MAX_BYTES)
        if (len(text), hashlib.sha256(text).hexdigest()) != (reference.bytes, reference.sha256):
            return None
        index = msgspec.json.decode(text, type=BundleIndex)
    except (OSError, ValueError, RecursionError):
        return None
    return index if index.format == INDEX_FORMAT else None


def open_indexed(bundle: Path) -> IndexedBundle | None:
    """Open a bundle by the index beside it; return None if it has to be read from its beginning.

    Raises:
        ErgoCaptureError: the file cannot be read, or the text around its lists is not that of the index.
    """
    try:
        manifest = read_manifest(manifest_path(bundle))
        index = read_index(bundle, manifest)
        return None if index is None else IndexedBundle(bundle, manifest, index)
    except (ManifestError, OSError):
        return None


class IndexedBundle:
    """A bundle that is read by blocks: a ``RecordStream`` whose lists can be read from any element on.

    Args:
        path: the bundle.
        manifest: its manifest.
        index: its index.

    Raises:
        OSError: the bundle cannot be read.
        ErgoCaptureError: the text around its lists is not that of the index.
    """

    def __init__(self, path: Path, manifest: Manifest, index: BundleIndex) -> None:
        self.path = path
        self._index = index
        self._is_compressed = manifest.compression != "none"
        blocks = [index.head, *(b.piece for b in index.events), index.middle, *(b.piece for b in index.decisions)]
        blocks.append(index.tail)
        ends = [*(piece.text for piece in blocks[1:]), manifest.bytes]
        #: Bytes of each piece, by its offset in the text.
        self._sizes = {piece.text: end - piece.text for piece, end in zip(blocks, ends, strict=True)}
        #: Bytes of the bundle's text.
        self.size = manifest.bytes
        #: The number of events, which is that of decisions.
        self.count = manifest.events
        #: The offsets of the pieces that were read, and the text of the last one.
        self.read: set[int] = set()
        self._last: tuple[Piece | None, bytes] = None, b""
        self._file = path.open("rb", buffering=0)
        try:
            around = b"".join(self._text(piece) for piece in (index.head, index.middle, index.tail))
            self._around = BundleStream(path, around)
        except BaseException:
            self._file.close()
            raise

    capture_version = property(lambda self: self._around.capture_version)
    graph_id = property(lambda self: self._around.graph_id)
    adapter_provenance = property(lambda self: self._around.adapter_provenance)
    runtime_provenance = property(lambda self: self._around.runtime_provenance)
    egress_provenance = property(lambda self: self._around.egress_provenance)

    @property
    def bytes_read(self) -> int:
        """Bytes of the text that were read and compared with their digests."""
        return sum(self._sizes[start] for start in self.read)

    @property
    def config(self) -> Constraints:
        """The constraints under which the episodes were decided."""
        return self._around.config

    def events(self, first: int = 0) -> Iterator[ExternalEventRecord]:
        """Yield the events from number ``first`` on.

        Raises:
            ErgoCaptureError: the file cannot be read, or a block is not that of the index.
        """
        return self._elements(self._index.events, EVENTS, first)

    def decisions(self, first: int = 0) -> Iterator[EpisodeInvocationRecord]:
        """Yield the decisions from number ``first`` on; raise as ``events`` does."""
        return self._elements(self._index.decisions, DECISIONS, first)

    def block_before(self, number: int) -> int:
        """Return the number of the first event of the block that holds event ``number``."""
        blocks = self._index.events
        return blocks[bisect_right(blocks, number, key=lambda block: block.first) - 1].first if blocks else 0

    @property
    def knows_ids(self) -> bool:
        """Whether the index holds ids."""
        return self._index.ids is not None

    def candidates(self, event_id: str) -> Iterator[int]:
        """Yield the numbers of the events that may have an id, in order.

        Raises:
            ErgoCaptureError: the file cannot be read, or a block is not that of the index.
        """
        checksums = array("H", b64decode(self._index.ids or ""))
        if sys.byteorder == "big":
            checksums.byteswap()
        blocks = self._index.events
        wanted = msgspec.json.encode(event_id)
        for place in _places(checksums, crc32(event_id.encode("utf-8", "surrogatepass")) & 0xFFFF):
            if wanted in self._text(blocks[bisect_right(blocks, place, key=lambda block: block.first) - 1].piece):
                yield place

    def _elements(self, blocks: list[IndexBlock], reader: ListReader[Any], first: int) -> Iterator[Any]:
        start = max(0, bisect_right(blocks, first, key=lambda block: block.first) - 1)
        for block in blocks[start:]:
            text = self._text(block.piece).removeprefix(b",")
            number = block.first
            for some in self._read(text, reader):
                yield from some[max(0, first - number) :]
                number += len(some)

    def _read(self, text: bytes, reader: ListReader[Block]) -> Iterator[Block]:
        try:
            yield from read_elements(io.BytesIO(text), Span(0, len(text)), reader)
        except ElementError as error:
            raise BundleFormatError(
                f"read capture bundle '{self.path}': {error}",
                op="read capture bundle",
                path=self.path,
                hint="`ergo-capture verify` says what is wrong with it",
            ) from error

    def _text(self, piece: Piece) -> bytes:
        """Return the text of a piece, after comparing its digest."""
        if self._last[0] != piece:
            self._last = piece, self._read_piece(piece)
            self.read.add(piece.text)
        return self._last[1]

    def _read_piece(self, piece: Piece) -> bytes:
        size = self._sizes[piece.text]
        try:
            self._file.seek(piece.file)
            text = self._decompressed(size) if self._is_compressed else _read_exactly(self._file, size)
        except OSError as error:
            raise self._not_as_indexed(piece, error.strerror or str(error)) from error
        if hashlib.sha256(text).hexdigest()[:DIGEST_DIGITS] != piece.digest:
            raise self._not_as_indexed(piece, "its digest differs")
        return text

    def _decompressed(self, size: int) -> bytes:
        import zstandard  # noqa: PLC0415 - only where a file is compressed

        try:
            with zstandard.ZstdDecompressor().stream_reader(self._file, read_across_frames=True, closefd=False) as text:
                return _read_exactly(text, size)
        except zstandard.ZstdError as error:
            raise OSError(f"not sound zstd: {error}") from error

    def _not_as_indexed(self, piece: Piece, reason: str) -> ErgoCaptureError:
        return ErgoCaptureError(
            f"read capture bundle '{self.path}': the block at byte {piece.text} of its text is not that of its index: "
            f"{reason}",
            op="read capture bundle",
            path=self.path,
            hint="`ergo-capture verify` says whether the bundle is damaged; without the index it is read from its beginning",
        )

    def close(self) -> None:
        """Close the file."""
        self._around.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_exactly(file: Any, size: int) -> bytes:
    """Return ``size`` bytes, or fewer if the file ends before."""
    blocks = []
    while size and (block := file.read(min(size, _READ_BYTES))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _places(values: array[int], value: int) -> Iterator[int]:
    place = -1
    while True:
        try:
            place = values.index(value, place + 1)
        except ValueError:
            return
        yield place
