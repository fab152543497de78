"""The journal as its users see it: commit, read back, begin and delete segments, seal."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import (
    decisions,
    events,
    found_frames,
    frames_of,
    journal_in,
    last_segment,
    look,
    opening,
    three_segments,
)

from ergo_capture.journal.errors import JournalFailed, JournalFull
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import Verdict
from ergo_capture.journal.wal import Journal, JournalSnapshot
from ergo_capture.storage import RealStorage


def test_frames_are_read_by_position_in_any_order(tmp_path: Path) -> None:
    """Forwards, backwards and one at a time."""
    journal = journal_in(tmp_path)
    frames = [opening(1), *(events(1, n, size=500) for n in range(20))]
    positions = [position for frame in frames for position in journal.commit([frame])]
    assert journal.current_segment > 2
    for order in (1, -1):
        read = read_frames(tmp_path, positions[::order], RealStorage())
        assert [frame.body for frame in read] == [frame.body for frame in frames][::order]
    (seventh,) = read_frames(tmp_path, positions[7:8], RealStorage())
    assert seventh.header.first == 6
    journal.close()


def test_packed_positions_sort_like_positions() -> None:
    """Unpacking returns the position."""
    positions = [Position(1, 0), Position(1, (1 << 32) - 1), Position(2, 0), Position(1 << 31, 8)]
    assert [Position.unpack(position.pack()) for position in positions] == positions
    assert sorted(position.pack() for position in reversed(positions)) == [position.pack() for position in positions]


def test_p2_batches_and_indices_are_numbered_without_a_gap(tmp_path: Path) -> None:
    """P2: over segments and restarts, each batch number is one higher than the one before."""
    three_segments(tmp_path)
    journal = journal_in(tmp_path)
    journal.commit([opening(9)])
    journal.close()
    places = [
        (header.batch, header.index, header.frames)
        for path in sorted(tmp_path.iterdir())
        for header, _ in frames_of(path)
    ]
    batch, index, frames = 1, 0, places[0][2]
    for place in places:
        assert place == (batch, index, place[2])
        frames = place[2]
        batch, index = (batch + 1, 0) if index + 1 == frames else (batch, index + 1)


def test_every_segment_begins_with_a_segment_frame(tmp_path: Path) -> None:
    """It names the format, the program, and where the segment before it ended."""
    three_segments(tmp_path)
    (frame,) = read_frames(tmp_path, [Position(3, 0)], RealStorage())
    before, _ = frames_of(last_segment(tmp_path, 2))[-1]
    assert frame.header.kind == FrameKind.SEGMENT
    assert frame.body == b'{"format":2,"program":"test 1","sequence":3,"batch":%d,"frames":%d}' % (
        before.batch,
        before.frames,
    )


def test_a_batch_never_spans_segments(tmp_path: Path) -> None:
    """A batch that does not fit goes to the next segment as a whole, and the old one ends in zeros."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), events(1, 0, size=2500)])
    positions = journal.commit([events(1, 1, size=700), events(1, 2, size=700)])
    assert {position.segment for position in positions} == {2}
    header, offset = frames_of(last_segment(tmp_path, 1))[-1]
    assert last_segment(tmp_path, 1).read_bytes()[offset + header.size :].strip(b"\0") == b""
    journal.close()


def test_a_batch_larger_than_a_segment_gets_a_larger_segment(tmp_path: Path) -> None:
    """The next batch goes to another segment."""
    journal = journal_in(tmp_path)
    positions = journal.commit([opening(1)])
    positions += journal.commit([events(1, 0, size=20_000), decisions(1, 0)])
    positions += journal.commit([events(1, 1)])
    assert [position.segment for position in positions] == [1, 2, 2, 3]
    journal.close()
    assert found_frames(tmp_path, look(tmp_path)) == set(positions)


def test_a_segment_is_allocated_in_full_and_closing_leaves_no_unfinished_one(tmp_path: Path) -> None:
    """Zeros follow the frames."""
    journal = journal_in(tmp_path)
    (position,) = journal.commit([PendingFrame(FrameKind.EVENTS, 1, 0, 1, b"x" * 2048)])
    data = last_segment(tmp_path, 1).read_bytes()
    assert len(data) == 4096 == journal.size_bytes
    assert data[position.offset + 64 + 2048 :].strip(b"\0") == b""
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000000001.journal"]


def test_an_empty_commit_writes_nothing(tmp_path: Path) -> None:
    """It takes no batch number."""
    journal = journal_in(tmp_path)
    assert journal.commit([]) == []
    assert (journal.snapshot().batch, list(tmp_path.iterdir())) == (0, [])
    journal.close()


def test_old_segments_are_deleted_oldest_first(tmp_path: Path) -> None:
    """The directory is synced after each, so that a power cut leaves no gap."""
    three_segments(tmp_path)
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    assert journal.delete_segments(1) == []
    journal.commit([opening(3)])
    storage.calls.clear()
    assert journal.delete_segments(4) == [1, 2, 3]
    assert [call.split()[0] for call in storage.calls] == ["remove", "sync_dir"] * 3
    assert storage.calls[::2] == [f"remove {n:016d}.journal" for n in (1, 2, 3)]
    assert journal.delete_segments(99) == []
    assert list(journal.segments) == [4]
    journal.close()
    assert look(tmp_path).damage == []


def test_p6_the_last_durable_segment_is_never_deleted(tmp_path: Path) -> None:
    """P6: the oldest segment left holds a durable frame, or a bad beginning could not be told from a torn end."""
    three_segments(tmp_path)
    journal = journal_in(tmp_path)
    assert journal.current_segment == 4
    assert journal.delete_segments(4) == [1, 2]
    journal.close()


def test_a_sealed_journal_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    """The next start cuts off the zeros after the seal."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), events(1, 0)])
    journal.seal()
    journal.close()
    header, offset = frames_of(last_segment(tmp_path, 1))[-1]
    assert header.kind == FrameKind.SEAL
    journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    assert last_segment(tmp_path, 1).stat().st_size == offset + header.size == journal.size_bytes
    assert (found.ending, found.torn, found.last_batch) == (Verdict.SEALED, None, 2)
    (position,) = journal.commit([events(1, 1)])
    assert position.segment == 2
    journal.close()
    found = look(tmp_path)
    assert found.ending is Verdict.UNSEALED
    assert (found.sessions[1].next_event, found.sessions[1].damage) == (2, None)


def test_sealing_a_sealed_journal_writes_nothing(tmp_path: Path) -> None:
    """A daemon that starts and stops often leaves one seal."""
    for _ in range(4):
        journal = journal_in(tmp_path)
        journal.seal()
        journal.seal()
        journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000000001.journal"]
    assert last_segment(tmp_path, 1).stat().st_size < 4096


def test_a_batch_after_a_seal_goes_to_another_segment(tmp_path: Path) -> None:
    """Nothing lies after a seal."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1)])
    journal.seal()
    (position,) = journal.commit([events(1, 0)])
    journal.close()
    assert position.segment == 2
    assert look(tmp_path).sessions[1].damage is None


def test_a_closed_journal_refuses_batches(tmp_path: Path) -> None:
    """Closing twice is closing once."""
    journal = journal_in(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalFailed, match="it is closed"):
        journal.commit([opening(1)])


def test_a_snapshot_holds_the_state_of_the_journal(tmp_path: Path) -> None:
    """The status shows it to operators."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1)])
    journal.commit([events(1, 0)])
    snapshot = journal.snapshot()
    assert (snapshot.segments, snapshot.bytes, snapshot.batch, snapshot.segment) == (1, 4096, 2, 1)
    assert snapshot.failed is None
    journal.close()


@pytest.mark.parametrize("size", [0, 4095, (2 << 30) + 1])
def test_a_segment_size_out_of_range_is_refused(size: int, tmp_path: Path) -> None:
    """Positions keep offsets in 32 bits."""
    with pytest.raises(ValueError, match="4 KiB to 2 GiB"):
        journal_in(tmp_path, segment_bytes=size)


def test_frames_are_read_while_others_are_written(tmp_path: Path) -> None:
    """Readers open their own files; neither a commit nor a new segment disturbs them."""
    journal = journal_in(tmp_path, segment_bytes=8192)
    positions = journal.commit([opening(1)])
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                known = list(positions)
                read = [frame.header.first for frame in read_frames(tmp_path, known[1:], RealStorage())]
                assert read == list(range(len(known) - 1))
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(300):
        positions += journal.commit([events(1, index, size=200)])
    done.set()
    reader.join()
    journal.close()
    assert failures == []
    assert journal.current_segment > 5


def test_a_frame_is_read_while_the_bytes_behind_it_are_cut_off(tmp_path: Path) -> None:
    """P8: a batch that does not fit the disk is cut off while a bundle is composed; the read-ahead must not fail."""
    journal, _ = Journal.open(tmp_path, RealStorage(), segment_bytes=64 << 10)
    (position,) = journal.commit([opening(1)])
    end = journal.snapshot().segment_offset
    journal.close()

    class Cut(FaultyStorage):
        """Cuts the segment between the query of its size and the read."""

        def call(self, op: str, path: Path) -> None:
            """Truncate the file before each read."""
            if op == "read":
                os.truncate(path, end)
            super().call(op, path)

    (frame,) = read_frames(tmp_path, [position], Cut())
    assert frame.header.kind == FrameKind.OPEN


def test_one_frame_is_read_by_a_small_read_and_many_by_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three frames of each of 10,000 sessions are read at start: 1 MiB for each frame took half a minute."""
    journal = journal_in(tmp_path, segment_bytes=4 << 20)
    positions = journal.commit([opening(1), *(events(1, n, size=4000) for n in range(800))])
    reads: list[int] = []
    real = os.pread

    def noting(fd: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", noting)
    for position in positions[:10]:
        list(read_frames(tmp_path, [position], RealStorage()))
    assert max(reads) <= 64 << 10
    assert len(reads) == 10
    reads.clear()
    assert len(list(read_frames(tmp_path, positions, RealStorage()))) == 801
    assert len(reads) < 20
    journal.close()


def head_of(directory: Path, sequence: int) -> int:
    """Return the size in bytes of the first frame of a segment."""
    return frames_of(last_segment(directory, sequence))[0][0].size


# --- segments ---


@pytest.mark.parametrize("size", range(3640, 4120, 40))
def test_a_batch_never_reaches_beyond_its_segment(size: int, tmp_path: Path) -> None:
    """The head of a segment does not either: bytes beyond the segment are not allocated."""
    journal = journal_in(tmp_path)
    journal.commit([PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(size))])
    (position,) = journal.commit([PendingFrame(FrameKind.EVENTS, 1, 1, 1, bytes(size))])
    journal.close()
    assert position == Position(2, head_of(tmp_path, 2))
    for sequence in (1, 2):
        header, offset = frames_of(last_segment(tmp_path, sequence))[-1]
        allocated = last_segment(tmp_path, sequence).stat().st_size
        assert offset + header.size <= allocated == journal.segments[sequence]
        assert allocated == 4096 or allocated - offset - header.size < 256


@pytest.mark.parametrize("append", [Journal.commit, Journal.write])
def test_a_batch_that_fits_exactly_does_not_begin_a_segment(
    append: Callable[[Journal, list[PendingFrame]], list[Position]], tmp_path: Path
) -> None:
    """One byte more does; whether it is prepared or not."""
    for more in (0, 8):
        directory = tmp_path / f"{more}"
        directory.mkdir()
        journal = journal_in(directory)
        journal.commit([opening(1)])
        left = 4096 - journal.snapshot().segment_offset
        (position,) = append(journal, [PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(left - 64 + more))])
        assert position.segment == (2 if more else 1)
        journal.close()


def test_the_next_segment_is_created_once_the_current_one_is_half_full(tmp_path: Path) -> None:
    """It is created in a thread, with the usual size."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    half = 2048 - journal.snapshot().segment_offset
    journal.commit([PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(half - 64))])
    assert journal.snapshot().segment_offset == 2048
    storage.calls.clear()
    journal.commit([events(1, 1)])
    journal._ahead._join()
    assert storage.calls[-2:] == [f"{op} 0000000000000002.journal.new" for op in ("open", "allocate")]
    assert (tmp_path / "0000000000000002.journal.new").stat().st_size == 4096
    journal.close()


def test_the_head_of_a_segment_names_the_last_batch_after_a_restart(tmp_path: Path) -> None:
    """The number of that batch's frames is named too."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), events(1, 0), events(1, 1)])
    journal.close()
    journal = journal_in(tmp_path)
    assert (journal.current_segment, journal.snapshot().batch) == (2, 1)
    journal.commit([events(1, 2)])
    journal.close()
    (frame,) = read_frames(tmp_path, [Position(2, 0)], RealStorage())
    assert frame.body == b'{"format":2,"program":"test 1","sequence":2,"batch":1,"frames":4}'


# --- batches that are prepared ---


def test_a_prepared_batch_is_written_as_it_is(tmp_path: Path) -> None:
    """The event loop encodes it, the commit thread writes it."""
    journal = journal_in(tmp_path)
    positions = journal.commit([opening(1)])
    frames = [events(1, 0), decisions(1, 0)]
    batch = journal.prepare(frames)
    assert batch is not None
    assert (batch.frames, batch.end - batch.start) == (2, sum(frame.size for frame in frames))
    assert journal.write(batch) == batch.positions
    positions += batch.positions
    positions += journal.commit([events(1, 1)])
    assert [position.offset for position in positions[1:]] == [batch.start, batch.start + frames[0].size, batch.end]
    journal.close()
    assert found_frames(tmp_path, look(tmp_path)) == set(positions)
    assert [header.batch for header, _ in frames_of(last_segment(tmp_path, 1))] == [1, 1, 2, 2, 3]


def test_a_batch_that_was_not_prepared_is_written_to_the_open_segment(tmp_path: Path) -> None:
    """It must fit there; otherwise a new segment is begun."""
    journal = journal_in(tmp_path)
    for index, segment in enumerate((1, 1, 2)):
        (position,) = journal.write([events(1, index, size=1600)])
        assert position.segment == segment
    journal.close()


def test_a_batch_that_has_no_place_in_the_open_segment_is_not_prepared(tmp_path: Path) -> None:
    """The commit thread begins a segment for it."""
    journal = journal_in(tmp_path)
    assert journal.prepare([opening(1)]) is None
    journal.commit([opening(1)])
    assert journal.prepare([]) is None
    left = 4096 - journal.snapshot().segment_offset
    assert journal.prepare([PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(left - 63))]) is None
    assert journal.prepare([PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(left - 64))]) is not None
    journal.seal()
    assert journal.prepare([events(1, 0)]) is None
    journal.close()
    assert journal.prepare([events(1, 0)]) is None


def test_a_failed_journal_prepares_nothing(tmp_path: Path) -> None:
    """Its segment is open still."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    storage.fail_next("sync", errno.EIO)
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0)])
    assert journal.prepare([events(1, 0)]) is None
    journal.close()


def test_a_batch_that_was_prepared_for_another_place_is_not_written(tmp_path: Path) -> None:
    """Its frames would overwrite others."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1)])
    batch = journal.prepare([events(1, 0)])
    assert batch is not None
    journal.commit([events(1, 0)])
    with pytest.raises(AssertionError, match="a batch was prepared while another one was written"):
        journal.write(batch)
    journal.close()


# --- the end ---


def test_a_journal_that_is_only_sealed_takes_little_room(tmp_path: Path) -> None:
    """A daemon that starts and stops does not leave segments of zeros."""
    journal = journal_in(tmp_path, segment_bytes=1 << 20)
    journal.seal()
    assert journal.segments == {1: 4096}
    journal.commit([opening(1)])
    assert journal.segments == {1: 4096, 2: 1 << 20}
    journal.close()


def test_a_seal_is_one_frame_of_no_session(tmp_path: Path) -> None:
    """It has a batch of its own."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1)])
    journal.seal()
    journal.close()
    header, offset = frames_of(last_segment(tmp_path, 1))[-1]
    assert (header.kind, header.session, header.first, header.count) == (FrameKind.SEAL, 0, 0, 0)
    assert (header.batch, header.index, header.frames) == (2, 0, 1)
    (frame,) = read_frames(tmp_path, [Position(1, offset)], RealStorage())
    assert frame.body == b"{}"


def test_a_journal_may_be_sealed_again_after_more_batches(tmp_path: Path) -> None:
    """Each seal ends a segment."""
    journal = journal_in(tmp_path)
    for number in (1, 2):
        journal.commit([opening(number)])
        journal.seal()
    journal.close()
    found = look(tmp_path)
    assert (found.ending, found.segments, found.last_batch) == (Verdict.SEALED, [1, 2], 4)


def test_a_segment_that_cannot_be_closed_behind_its_seal_fails_the_journal(tmp_path: Path) -> None:
    """The seal itself is durable."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    storage.fail_next("close", errno.EIO)
    with pytest.raises(JournalFailed):
        journal.seal()
    with pytest.raises(JournalFailed):
        journal.commit([events(1, 0)])
    journal.close()
    assert look(tmp_path).ending is Verdict.SEALED


def test_closing_does_not_report_that_a_file_could_not_be_closed(tmp_path: Path) -> None:
    """Everything acknowledged is durable."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    storage.fail_next("close", errno.EIO)
    journal.close()
    assert storage.calls[-1] == "-close 0000000000000001.journal"


# --- numbers ---


def test_a_snapshot_follows_commits_segments_and_the_end(tmp_path: Path) -> None:
    """Sizes are those of the files."""
    journal = journal_in(tmp_path)
    assert journal.snapshot() == JournalSnapshot(0, 0, 0, 1, 0, None)
    journal.commit([events(1, 0, size=3400)])
    end = journal.snapshot().segment_offset
    assert end == head_of(tmp_path, 1) + events(1, 0, size=3400).size
    journal.commit([events(1, 1, size=3400)])
    assert journal.snapshot() == JournalSnapshot(2, 8192, 2, 2, end, None)
    journal.delete_segments(2)
    assert journal.snapshot() == JournalSnapshot(1, 4096, 2, 2, end, None)
    assert (journal.size_bytes, journal.segments) == (4096, {2: 4096})
    journal.seal()
    assert journal.snapshot() == JournalSnapshot(1, 4096, 3, 3, 0, None)
    journal.close()


def test_a_segment_that_was_cut_after_a_full_disk_has_its_new_size(tmp_path: Path) -> None:
    """One whose first batch did not fit is gone."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    end = journal.snapshot().segment_offset
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 0)])
    assert journal.snapshot() == JournalSnapshot(1, end, 1, 2, 0, None)
    assert last_segment(tmp_path, 1).stat().st_size == end
    storage.calls.clear()
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull):
        journal.commit([events(1, 0)])
    assert journal.snapshot() == JournalSnapshot(1, end, 1, 2, 0, None)
    assert [call.split()[0] for call in storage.calls[-3:]] == ["close", "remove", "sync_dir"]
    journal.commit([events(1, 0)])
    assert journal.segments == {1: end, 2: 4096}
    journal.close()


@pytest.mark.parametrize("size", [4096, 2 << 30])
def test_a_segment_may_have_any_size_in_the_range(size: int, tmp_path: Path) -> None:
    """The bounds are part of it."""
    journal_in(tmp_path, segment_bytes=size).close()


def test_a_journal_of_an_unnamed_program_is_ergo_captures(tmp_path: Path) -> None:
    """The heads of its segments say so."""
    journal, _ = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    journal.commit([opening(1)])
    journal.close()
    (frame,) = read_frames(tmp_path, [Position(1, 0)], RealStorage())
    assert b'"program":"ergo-capture"' in frame.body
