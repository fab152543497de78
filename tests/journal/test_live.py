"""Frames that a daemon writes while its journal is scanned are never taken for damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.journal.journals import closing, decisions, events, journal_in, opening

from ergo_capture.journal.scan import scan
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealFile, RealStorage


class Interrupted(RealStorage):
    """A storage that calls a function after some reads, as if the writer were faster than the reader."""

    def __init__(self, after: int, then: Callable[[], None]) -> None:
        self.left = after
        self._then = then

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> RealFile:
        """Open a file that counts reads."""
        file = super().open(path, create=create, write=write)
        read = file.read_at

        def read_at(offset: int, size: int) -> bytes:
            data = read(offset, size)
            if self.left == 0:
                self._then()
            self.left -= 1
            return data

        file.read_at = read_at  # type: ignore[method-assign]
        return file


def batches(journal: Journal, first: int) -> None:
    """Commit three batches about one session."""
    for index in range(first, first + 3):
        journal.commit([events(1, index, 1, 300)])
        journal.commit([decisions(1, index)])


@pytest.mark.parametrize("reads", range(8))
def test_batches_written_during_a_scan_are_not_damage(reads: int, tmp_path: Path) -> None:
    """The scan's buffer is older than what it reads next, but a gap between the two is not a loss."""
    journal = journal_in(tmp_path, segment_bytes=4 << 20)
    journal.commit([opening(1)])
    batches(journal, 0)
    storage = Interrupted(reads, lambda: batches(journal, 3))
    found = scan(tmp_path, storage)
    journal.close()
    assert (found.damage, found.sessions[1].damage) == ([], None)
    assert found.sessions[1].next_decision in (3, 4, 5, 6)
    if reads == 0:
        assert storage.left < 0, "nothing was written meanwhile"


def test_a_seal_written_during_a_scan_is_not_damage(tmp_path: Path) -> None:
    """The daemon is stopped during the scan."""
    journal = journal_in(tmp_path, segment_bytes=4 << 20)
    journal.commit([opening(1)])
    batches(journal, 0)

    def stop() -> None:
        journal.commit([closing(1, 3)])
        journal.seal()

    found = scan(tmp_path, Interrupted(0, stop))
    journal.close()
    assert (found.damage, found.sessions[1].damage) == ([], None)
