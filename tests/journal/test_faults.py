"""Errors of the disk: which fail the journal, which pass, and that nothing is acknowledged before its sync."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import damaged, events, found_frames, journal_in, last_segment, look, opening, write_batches

from ergo_capture.journal.errors import JournalFailed, JournalFull
from ergo_capture.journal.frame import Position
from ergo_capture.journal.scan_report import Verdict
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import StorageError

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EACCES, errno.EROFS]
FULL = {errno.ENOSPC, errno.EDQUOT}


def running(directory: Path) -> tuple[Journal, FaultyStorage, list[Position]]:
    """Return a journal without an error so far, its storage, and the positions of its frames."""
    storage = FaultyStorage()
    journal = journal_in(directory, storage)
    positions = journal.commit([opening(1)])
    storage.calls.clear()
    return journal, storage, positions


def name(number: int) -> str:
    """Return the name of an errno, for the ids of tests."""
    return errno.errorcode[number]


def test_p1_no_commit_returns_before_its_sync(tmp_path: Path) -> None:
    """P1: a commit is one write and one sync, in this order."""
    journal, storage, _ = running(tmp_path)
    for index in range(3):
        journal.commit([events(1, index), events(1, index + 100)])
    assert storage.calls == ["write 0000000000000001.journal", "sync 0000000000000001.journal"] * 3
    journal.close()


def test_p1_the_name_of_a_new_segment_is_durable_before_its_first_batch(tmp_path: Path) -> None:
    """P1: the order is allocate, close the old one, rename, sync the directory, write."""
    journal, storage, _ = running(tmp_path)
    journal.commit([events(1, 0, size=3400)])
    journal._ahead._join()
    storage.calls.clear()
    journal.commit([events(1, 1, size=3400)])
    journal._ahead._join()
    assert storage.calls[:5] == [
        "close 0000000000000001.journal",
        "rename 0000000000000002.journal",
        f"sync_dir {tmp_path.name}",
        "write 0000000000000002.journal",
        "sync 0000000000000002.journal",
    ]
    journal.close()


@pytest.mark.parametrize("number", ERRORS, ids=name)
def test_p7_a_failed_sync_is_never_tried_again(number: int, tmp_path: Path) -> None:
    """P7: after any error, a full disk among them, the journal has failed for good and never uses the file again."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("sync", number)
    with pytest.raises(JournalFailed) as caught:
        journal.commit([events(1, 0)])
    assert isinstance(caught.value.cause, StorageError)
    assert (caught.value.cause.errno, caught.value.op) == (number, "append to journal")
    assert caught.value.hint is not None
    storage.calls.clear()
    for _ in range(3):
        with pytest.raises(JournalFailed, match="append to journal"):
            journal.commit([events(1, 0)])
    with pytest.raises(JournalFailed):
        journal.seal()
    assert storage.calls == []
    assert journal.snapshot().failed is not None
    journal.close()


@pytest.mark.parametrize("number", [number for number in ERRORS if number not in FULL], ids=name)
def test_p7_a_failed_write_fails_the_journal(number: int, tmp_path: Path) -> None:
    """P7: what was written of the batch is unknown, so nothing is written after it."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("write", number)
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0, 3)])
    storage.calls.clear()
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0)])
    assert storage.calls == []
    journal.close()


def test_p7_a_failed_journal_raises_a_new_error_each_time(tmp_path: Path) -> None:
    """An error that is raised again keeps every stack it was raised in."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("sync", errno.EIO)
    errors = []
    for _ in range(3):
        with pytest.raises(JournalFailed) as caught:
            journal.commit([events(1, 0)])
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    journal.close()


@pytest.mark.parametrize("number", sorted(FULL), ids=name)
@pytest.mark.parametrize("times", [1, 3])
def test_p8_a_full_disk_refuses_a_batch_and_the_next_one_is_written(number: int, times: int, tmp_path: Path) -> None:
    """P8: the half of the batch that was written is cut off."""
    journal, storage, positions = running(tmp_path)
    storage.fail_next("write", *[number] * times)
    for _ in range(times):
        with pytest.raises(JournalFull) as caught:
            journal.commit([events(1, 0, 3, size=300)])
        assert isinstance(caught.value.cause, StorageError)
        assert caught.value.cause.errno == number
    positions += journal.commit([events(1, 0)])
    positions += journal.commit([events(1, 1)])
    journal.close()
    found = look(tmp_path)
    assert found_frames(tmp_path, found) == set(positions)
    assert (found.torn, found.damage, damaged(found)) == (None, [], [])


def test_p8_after_a_full_disk_the_next_batch_goes_to_another_segment(tmp_path: Path) -> None:
    """P7, P8: the error may be from the sync inside the write, so nothing may depend on the same pages."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 0)])
    assert storage.calls[-2:] == ["truncate 0000000000000001.journal", "close 0000000000000001.journal"]
    (position,) = journal.commit([events(1, 0)])
    assert position.segment == 2
    journal.close()


def test_p8_a_segment_whose_first_batch_is_refused_is_removed(tmp_path: Path) -> None:
    """P8: an empty segment would be taken for damage."""
    journal, storage, positions = running(tmp_path)
    positions += journal.commit([events(1, 0, size=3400)])
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 1, size=3400)])
    assert not last_segment(tmp_path, 2).exists()
    positions += journal.commit([events(1, 1, size=3400)])
    assert positions[-1].segment == 2
    journal.close()
    found = look(tmp_path)
    assert found_frames(tmp_path, found) == set(positions)
    assert (found.damage, damaged(found)) == ([], [])


@pytest.mark.parametrize("op", ["open", "allocate", "rename", "sync_dir", "close"])
@pytest.mark.parametrize("number", ERRORS, ids=name)
def test_p7_p8_a_full_disk_is_refused_and_another_error_fails_the_journal_while_a_segment_begins(
    op: str, number: int, tmp_path: Path
) -> None:
    """P7, P8: what was acknowledged stays."""
    journal, storage, positions = running(tmp_path)
    positions += journal.commit([events(1, 0, size=3400)])
    journal._ahead._join()
    journal._ahead.discard()
    # Four times: where there is no room for a whole segment, a smaller one is tried.
    storage.fail_next(op, *[number] * 4)
    expected = JournalFull if number in FULL else JournalFailed
    with pytest.raises(expected) as caught:
        journal.commit([events(1, 1, size=3400)])
    assert caught.value.hint is not None
    storage.table.clear()
    if number in FULL:
        positions += journal.commit([events(1, 1, size=3400)])
        positions += journal.commit([events(1, 2, size=3400)])
    else:
        with pytest.raises(JournalFailed):
            journal.commit([events(1, 1)])
    journal.close()
    found = look(tmp_path)
    assert found_frames(tmp_path, found) == set(positions)
    assert (found.torn, found.damage, damaged(found)) == (None, [], [])


@pytest.mark.parametrize("op", ["rename", "sync_dir"])
def test_p8_a_small_batch_after_a_segment_that_found_no_room_goes_to_a_new_one(op: str, tmp_path: Path) -> None:
    """P8: the segment before is closed, though the batch would fit there."""
    journal, storage, positions = running(tmp_path)
    storage.fail_next(op, errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 0, size=3900)])
    assert journal.prepare([events(1, 0)]) is None
    positions += journal.commit([events(1, 0)])
    assert positions[-1].segment == 2
    journal.close()
    assert found_frames(tmp_path, look(tmp_path)) == set(positions)


@pytest.mark.parametrize("op", ["truncate", "close"])
@pytest.mark.parametrize("number", ERRORS, ids=name)
def test_p7_a_batch_that_cannot_be_cut_off_fails_the_journal(op: str, number: int, tmp_path: Path) -> None:
    """P7: after a full disk and an error in cleaning up, the contents of the segment are unknown."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("write", errno.ENOSPC)
    storage.fail_next(op, number)
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0, 3)])
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0)])
    journal.close()
    again, found = Journal.open(tmp_path, FaultyStorage())
    again.close()
    assert damaged(found) == []


def test_p8_a_smaller_segment_is_created_where_there_is_no_room_for_a_whole_one(tmp_path: Path) -> None:
    """P8: the last megabyte of the disk is used before a batch is refused."""
    storage = FaultyStorage({"allocate": [errno.ENOSPC]})
    journal = journal_in(tmp_path, storage, segment_bytes=8 << 20)
    journal.commit([opening(1)])
    assert journal.size_bytes == 1 << 20
    assert storage.calls.count("allocate 0000000000000001.journal.new") == 1
    journal.close()


def test_a_commit_creates_the_segment_itself_where_the_thread_failed(tmp_path: Path) -> None:
    """The error in the thread is not reported."""
    journal, storage, positions = running(tmp_path)
    storage.fail_next("allocate", errno.EIO)
    positions += journal.commit([events(1, 0, size=3400)])
    journal._ahead._join()
    assert "-allocate 0000000000000002.journal.new" in storage.calls
    positions += journal.commit([events(1, 1, size=3400)])
    journal.close()
    assert found_frames(tmp_path, look(tmp_path)) == set(positions)


@pytest.mark.parametrize("op", ["open", "read"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=name)
def test_p6_a_segment_that_cannot_be_read_stops_the_start(op: str, number: int, tmp_path: Path) -> None:
    """P6: it is not taken for torn, and nothing is changed."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)]])
    before = last_segment(tmp_path, 1).read_bytes()
    with pytest.raises(StorageError):
        journal_in(tmp_path, FaultyStorage({op: [number]}))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("op", ["open", "write", "sync", "rename", "sync_dir", "truncate", "close"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES], ids=name)
@pytest.mark.parametrize("call", [0, 1, 2])
def test_p5_an_error_during_repair_stops_the_start_and_loses_nothing(
    op: str, number: int, call: int, tmp_path: Path
) -> None:
    """P5: wherever repair is interrupted by an error, the next start finishes it, with one whole copy."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0), events(1, 1)]])
    segment = last_segment(tmp_path, 1)
    header, offset = look(tmp_path).last_batch, frames_end(segment)
    assert header == 2
    torn = segment.read_bytes()[: offset - 10]
    segment.write_bytes(torn)
    storage = FaultyStorage({op: [None] * call + [number]})
    try:
        journal_in(tmp_path, storage).close()
    except StorageError as error:
        assert error.errno == number
        assert error.hint is not None
    journal_in(tmp_path).close()
    found = look(tmp_path)
    copies = [path.read_bytes() for path in tmp_path.iterdir() if ".torn" in path.name]
    assert (found.torn, found.damage, found.sessions[1].next_event) == (None, [], 1)
    assert copies == [torn[len(segment.read_bytes()) :]]


def frames_end(segment: Path) -> int:
    """Return where the last frame of a segment ends."""
    data = segment.read_bytes().rstrip(b"\0")
    return -(-len(data) // 8) * 8


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=name)
@pytest.mark.parametrize("op", ["remove", "sync_dir"])
def test_the_journal_goes_on_after_a_segment_could_not_be_deleted(op: str, number: int, tmp_path: Path) -> None:
    """The next attempt deletes it."""
    journal, storage, _ = running(tmp_path)
    for index in range(4):
        journal.commit([events(1, index, size=3400)])
    storage.fail_next(op, None, number)
    with pytest.raises(StorageError):
        journal.delete_segments(4)
    journal.commit([events(1, 4)])
    journal.delete_segments(4)
    assert min(journal.segments) == 4
    journal.close()
    assert look(tmp_path).damage == []


def test_p7_a_start_rewrites_and_syncs_the_last_batch(tmp_path: Path) -> None:
    """P7: its sync may have failed, and a second sync does not write pages that the system takes for clean."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)], [events(1, 1)]])
    storage = FaultyStorage()
    before = last_segment(tmp_path, 1).read_bytes().rstrip(b"\0")
    journal_in(tmp_path, storage).close()
    changes = [call for call in storage.calls if call.split()[0] in ("write", "sync", "truncate")]
    assert changes == [f"{op} 0000000000000001.journal" for op in ("truncate", "write", "sync")]
    assert last_segment(tmp_path, 1).read_bytes().rstrip(b"\0") == before


def test_p7_a_start_rewrites_and_syncs_the_last_seal(tmp_path: Path) -> None:
    """P6, P7: a seal that was lost later, with segments after it that name its batch, would be taken for damage."""
    journal, storage, _ = running(tmp_path)
    storage.fail_next("sync", errno.EIO)
    with pytest.raises(JournalFailed):
        journal.seal()
    journal.close()
    for _ in range(2):
        storage = FaultyStorage()
        again, found = Journal.open(tmp_path, storage)
        again.close()
        assert found.ending is Verdict.SEALED
        changes = [call.split()[0] for call in storage.calls if call.split()[0] in ("write", "sync")]
        assert changes == ["write", "sync"]


def test_p5_the_copy_of_a_torn_end_is_durable_before_anything_is_cut_off(tmp_path: Path) -> None:
    """P5: the order is write, sync, rename, sync the directory, cut the segment."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)]])
    segment = last_segment(tmp_path, 1)
    segment.write_bytes(segment.read_bytes()[: frames_end(segment) - 10])
    storage = FaultyStorage()
    journal_in(tmp_path, storage).close()
    changes = [call for call in storage.calls if call.split()[0] not in ("open", "read", "close")]
    assert changes[:5] == [
        f"write {segment.name}.torn.new",
        f"sync {segment.name}.torn.new",
        f"rename {segment.name}.torn",
        f"sync_dir {tmp_path.name}",
        f"truncate {segment.name}",
    ]
