"""The semantic kinds of a bundle's events, for which the bundle has no field: a column in its manifest.

The column is one 16-bit little-endian integer for each event, compressed with zstd and written in base64: 0 for an
event without a semantic kind, otherwise the number of its name, from 1. For a million events it takes a few KB if the
kinds follow a pattern, and 160 KB for two kinds in random order.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import zstandard

#: The largest number of names, and of bytes of the names and of the compressed column: they have to fit in a manifest.
_MAX_NAMES: Final = (1 << 16) - 1
_MAX_BYTES: Final = 256 << 10
#: Bytes that are decompressed at a time.
_PIECE: Final = 64 << 10
_BIG_ENDIAN: Final = sys.byteorder == "big"


class SemanticKinds(msgspec.Struct, frozen=True):
    """A column as a manifest holds it."""

    names: list[str]
    #: Base64 of the compressed numbers; None if they do not fit in a manifest.
    column: str | None

    def of(self, count: int) -> Iterator[str | None] | None:
        """Return the kinds of a bundle's events; None if the column was left out, or is that of another bundle.

        Args:
            count: events of the bundle.
        """
        if self.column is None or not count:
            return None
        try:
            numbers = array("H", _decompress(base64.b64decode(self.column, validate=True), 2 * count))
        except (ValueError, zstandard.ZstdError):
            return None
        if _BIG_ENDIAN:
            numbers.byteswap()
        if len(numbers) != count or max(numbers, default=0) > len(self.names):
            return None
        names = [None, *self.names]
        return (names[number] for number in numbers)


def _decompress(compressed: bytes, size: int) -> bytes:
    """Return the text, or a beginning of it that is longer than ``size``."""
    text = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(compressed) as reader:
        while len(text) <= size and (piece := reader.read(_PIECE)):
            text += piece
    return bytes(text)


class KindColumn:
    """The semantic kinds of a bundle that is being composed; memory does not grow with the events."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._name_bytes = 0
        self._compressor = zstandard.ZstdCompressor().compressobj()
        self._compressed = bytearray()
        #: Whether the column does not fit in a manifest.
        self._is_too_much = False

    def add(self, body: bytes, count: int, start: int, stop: int) -> None:
        """Add the kinds of a body of ``count`` events, from ``start`` to before ``stop``.

        Raises:
            EventFormatError: the body is not one that the daemon accepts.
        """
        if self._is_too_much:
            return
        from ergo_capture.journal.lines import read_semantic_kinds  # noqa: PLC0415 - who reads manifests needs no journal

        self.add_kinds(read_semantic_kinds(body, count)[start:stop])

    def add_kinds(self, kinds: Sequence[str | None]) -> None:
        """Add the kinds of the next events."""
        if self._is_too_much:
            return
        # Most bundles have none at all.
        has_none = kinds.count(None) == len(kinds)
        numbers = array("H", bytes(2 * len(kinds)) if has_none else map(self._number_of, kinds))
        if _BIG_ENDIAN:
            numbers.byteswap()
        self._compressed += self._compressor.compress(numbers.tobytes())
        self._is_too_much |= len(self._compressed) > _MAX_BYTES

    def _number_of(self, kind: str | None) -> int:
        if kind is None:
            return 0
        number = self._numbers.get(kind)
        if number is None:
            self._name_bytes += len(kind)
            if len(self._numbers) == _MAX_NAMES or self._name_bytes > _MAX_BYTES:
                self._is_too_much = True
                return 0
            number = self._numbers[kind] = len(self._numbers) + 1
        return number

    def finish(self) -> SemanticKinds | None:
        """Return the column; None where no event has a kind."""
        if not self._is_too_much and not self._numbers:
            return None
        compressed = self._compressed + self._compressor.flush()
        if self._is_too_much or len(compressed) > _MAX_BYTES:
            return SemanticKinds([], None)
        return SemanticKinds(list(self._numbers), base64.b64encode(compressed).decode())
