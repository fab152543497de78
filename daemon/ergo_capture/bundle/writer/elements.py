"""Elements of a bundle's list as text, and the rule for where a block of the index begins.

The beginning of a block depends on the elements before it, and not on how many were written at a time. So a bundle that
is composed while its session runs has the same blocks.
"""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Sequence
from sys import byteorder
from typing import Final, NamedTuple
from zlib import crc32

#: A block may begin before each element whose number is a multiple of this, and before each large one. The payloads of
#: as many elements, as lists of numbers, stay in the processor's cache while they are encoded.
MARK_EVERY: Final = 64
#: The least size of a large payload of an event, or of a large text of a decision, in bytes.
LARGE: Final = 8 << 10
#: The least size of a block, in bytes; further on in a list it is a 512th of the text before the block.
_LEAST_BLOCK: Final = 256 << 10
_SHARE: Final = 9
#: The largest number of blocks of one list.
MAX_BLOCKS: Final = 4_096
#: The largest number of events whose ids are in the index.
_MAX_IDS: Final = 2 << 20


class Elements(NamedTuple):
    """Consecutive elements of a list."""

    #: A comma precedes each.
    text: bytes | bytearray
    number: int
    #: The places where a block may begin: offsets in the text, each with the number of elements before it in the text.
    marks: Sequence[tuple[int, int]]


def marked(sizes: Sequence[int], number: int) -> list[int]:
    """Return the places at which a block may begin, among elements of these sizes; ``number`` is that of the first."""
    places = range(-number % MARK_EVERY, len(sizes), MARK_EVERY)
    if max(sizes, default=0) < LARGE:
        return list(places)
    return sorted({*places, *(place for place, size in enumerate(sizes) if size >= LARGE)})


def joined(texts: Sequence[bytes], sizes: Sequence[int], number: int) -> Elements:
    """Join the texts of elements, each after its comma.

    Args:
        texts: the elements.
        sizes: their sizes in bytes, which show which of them are large.
        number: the number of the first one.
    """
    marks, offset, at = [], 0, 0
    for place in marked(sizes, number):
        offset += sum(map(len, texts[at:place]))
        at = place
        marks.append((offset, place))
    return Elements(b"".join(texts), len(texts), marks)


class BlockRule:
    """Divides the elements of one list into blocks."""

    def __init__(self) -> None:
        #: The number of the first element of each block.
        self.firsts: list[int] = []
        self._elements = self._size = self._begun = 0

    def divide(self, elements: Elements) -> list[int]:
        """Return the places in the text of the next elements at which blocks begin."""
        begins = []
        at = number = 0
        for offset, place in elements.marks:
            self._add(offset - at, place - number)
            at, number = offset, place
            if self._begins():
                begins.append(offset)
        self._add(len(elements.text) - at, elements.number - number)
        return begins

    def _add(self, size: int, count: int) -> None:
        self._size += size
        self._elements += count

    def _begins(self) -> bool:
        if self.firsts and (
            len(self.firsts) == MAX_BLOCKS or self._size - self._begun < max(_LEAST_BLOCK, self._size >> _SHARE)
        ):
            return False
        self.firsts.append(self._elements)
        self._begun = self._size
        return True


class IdColumn:
    """Collects the ids of a bundle's events, as two bytes of a checksum each."""

    def __init__(self) -> None:
        self._checksums: array[int] | None = array("H")

    def add(self, ids: Sequence[str]) -> None:
        """Add the ids of the next events."""
        if self._checksums is None:
            return
        if len(self._checksums) + len(ids) > _MAX_IDS:
            self._checksums = None
            return
        # Half of each: the lower one, whatever the machine's order of bytes.
        halves = array("H", array("I", map(crc32, map(str.encode, ids))).tobytes())
        self._checksums.extend(halves[byteorder == "big" :: 2])

    def finish(self) -> str | None:
        """Return the column in base64, little-endian; None if there are too many events."""
        if self._checksums is None:
            return None
        if byteorder == "big":
            self._checksums.byteswap()
        return b64encode(self._checksums.tobytes()).decode()
