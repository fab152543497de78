"""Files of the journal that are removed or replaced while it is open: how they are noticed, and what is saved."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import events, journal_in, last_segment, opening

from ergo_capture.journal.errors import JournalFull, JournalLost
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the directory of a journal, in a state directory."""
    directory = tmp_path / "state" / "journal"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def storage() -> FaultyStorage:
    """Return the storage of the journal."""
    return FaultyStorage()


@pytest.fixture
def journal(directory: Path, storage: FaultyStorage) -> Iterator[Journal]:
    """Yield a watched journal of three segments; the first was there when it was opened."""
    journal = journal_in(directory)
    journal.commit([opening(1)])
    journal.close()
    journal = journal_in(directory, storage)
    with RealStorage().lock(directory.parent / "lock") as lock:
        journal.watch(lock)
        journal.commit([events(1, 0, size=3400)])
        journal.commit([events(1, 1, size=3400)])
        yield journal
    journal.close()


def lost(error: JournalLost | None) -> str | None:
    """Return the path that an error names."""
    return None if error is None else error.path


def test_a_watched_journal_is_not_lost(journal: Journal) -> None:
    """This also holds after segments were deleted that nobody needs."""
    assert (journal.is_lost(), journal.find_loss()) == (None, None)
    assert journal.delete_segments(3) == [1, 2]
    assert (journal.is_lost(), journal.find_loss()) == (None, None)


def test_a_removed_segment_is_noticed(journal: Journal, directory: Path) -> None:
    """An older one by the full check only; the one that is written by the check before each commit."""
    last_segment(directory, 1).unlink()
    assert lost(journal.find_loss()) == str(last_segment(directory, 1))
    assert journal.is_lost() is None
    last_segment(directory, 3).unlink()
    assert lost(journal.is_lost()) == str(last_segment(directory, 3))


def test_a_replaced_segment_is_noticed(journal: Journal, directory: Path) -> None:
    """The replacement may even be a copy of it."""
    shutil.copy(last_segment(directory, 2), directory / "copy")
    (directory / "copy").replace(last_segment(directory, 2))
    assert lost(journal.find_loss()) == str(last_segment(directory, 2))


def test_a_removed_lock_is_noticed(journal: Journal, directory: Path) -> None:
    """Another daemon could start beside this one."""
    lock = directory.parent / "lock"
    lock.unlink()
    assert lost(journal.is_lost()) == lost(journal.find_loss()) == str(lock)


def test_the_error_of_a_removed_file_says_what_the_daemon_does(journal: Journal, directory: Path) -> None:
    """It does not say that events are safe."""
    (directory.parent / "lock").unlink()
    error = journal.find_loss()
    assert error is not None
    assert (
        error.message
        == f"watch journal: '{directory.parent / 'lock'}' was removed or replaced while the daemon used it"
    )
    assert (error.op, error.path) == ("watch journal", str(directory.parent / "lock"))
    assert error.hint == (
        "acknowledged events that are in no bundle yet may be gone from the directory: the daemon copies the segments "
        "that it has open to journal.saved-N beside the journal, and stops; see `ergo-capture help damage`"
    )


def test_no_segment_is_begun_once_a_file_was_removed(journal: Journal, directory: Path) -> None:
    """No start would find what is written to it."""
    last_segment(directory, 2).unlink()
    with pytest.raises(JournalLost):
        journal.commit([events(1, 2, size=3400)])
    assert not last_segment(directory, 4).exists()


def test_all_segments_are_saved_beside_the_journal(journal: Journal, directory: Path) -> None:
    """Removed ones too, each time to a new directory."""
    contents = {path.name: path.read_bytes() for path in directory.glob("*.journal")}
    assert len(contents) == 3
    shutil.rmtree(directory)
    for number in (1, 2):
        saved = journal.save()
        assert saved == directory.parent / f"journal.saved-{number}"
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == contents


def test_segments_are_saved_though_the_state_directory_was_removed(journal: Journal, directory: Path) -> None:
    """It is created again."""
    shutil.rmtree(directory.parent)
    saved = journal.save()
    assert saved is not None
    assert len(list(saved.iterdir())) == 3


def test_a_journal_that_is_not_watched_is_neither_lost_nor_saved(directory: Path) -> None:
    """A library's user may move its files."""
    journal = journal_in(directory)
    journal.commit([opening(1)])
    last_segment(directory, 1).unlink()
    assert (journal.is_lost(), journal.find_loss(), journal.save()) == (None, None, None)
    journal.close()


def test_a_watched_segment_stays_open_until_the_journal_is_closed(
    journal: Journal, directory: Path, storage: FaultyStorage
) -> None:
    """Rolled, sealed, or with a batch that did not fit; only a deleted one is closed."""
    storage.calls.clear()
    journal.commit([events(1, 2, size=3400)])
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 3)])
    journal.seal()
    assert [call for call in storage.calls if call.startswith("close") and not call.endswith(".new")] == []
    journal.delete_segments(2)
    assert [call for call in storage.calls if call.startswith("close")] == ["close 0000000000000001.journal"]
    assert journal.find_loss() is None
    journal.close()
    assert {call for call in storage.calls if call.startswith("close")} >= {
        f"close {number:016d}.journal" for number in (1, 2, 3, 4)
    }


def test_a_watched_segment_whose_first_batch_did_not_fit_is_not_missed(
    journal: Journal, storage: FaultyStorage
) -> None:
    """It is removed; the next commit creates it again."""
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 2, size=3400)])
    assert (journal.find_loss(), list(journal.segments)) == (None, [1, 2, 3])
    (position,) = journal.commit([events(1, 2, size=3400)])
    assert (position.segment, journal.find_loss()) == (4, None)
