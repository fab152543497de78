"""Find repeated ids among millions, in a few bytes an id."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

_LEAST: Final = 1 << 12
_MASK: Final = (1 << 64) - 1


class SeenIds:
    """A hash table of 64-bit hashes: it takes 13 to 27 bytes an id, and twice that while it grows.

    A set of the ids takes about a hundred bytes an id, and a bundle may hold millions.

    Args:
        expected: the expected number of ids, which saves growing; growing takes as long as adding.
    """

    def __init__(self, expected: int = 0) -> None:
        size = max(_LEAST, 1 << (expected * 5 // 3).bit_length())
        self._table = array("Q", bytes(8 * size))
        self._mask = size - 1
        self._count = 0

    def add(self, event_id: str) -> bool:
        """Add an id; return whether it, or very rarely another one with the same hash, was there.

        The caller has to confirm a True.
        """
        # Zero marks an empty place in the table.
        digest = hash(event_id) & _MASK or 1
        table, mask = self._table, self._mask
        at = digest & mask
        while (found := table[at]) != 0:
            if found == digest:
                return True
            at = (at + 1) & mask
        table[at] = digest
        self._count += 1
        if self._count * 5 > mask * 3:
            self._grow()
        return False

    def add_all(self, event_ids: Iterable[str]) -> bool:
        """Add ids; return whether one of them, or very rarely another one with its hash, was there.

        One loop takes a third of the time of a call for each. If it returns True, the ids after the repeated one are
        not added.
        """
        for number in map(hash, event_ids):
            digest = number & _MASK or 1
            table, mask = self._table, self._mask
            at = digest & mask
            while (found := table[at]) != 0:
                if found == digest:
                    return True
                at = (at + 1) & mask
            table[at] = digest
            self._count += 1
            if self._count * 5 > mask * 3:
                self._grow()
        return False

    def _grow(self) -> None:
        old, size = self._table, 2 * len(self._table)
        self._table = table = array("Q", bytes(8 * size))
        self._mask = mask = size - 1
        for digest in old:
            if digest:
                at = digest & mask
                while table[at]:
                    at = (at + 1) & mask
                table[at] = digest

    def __len__(self) -> int:
        return self._count
