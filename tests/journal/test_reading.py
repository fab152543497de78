"""Reading in pieces (the window on a file, runs of frames, the search for a header) gives the result of one read."""

from __future__ import annotations

from array import array
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import events, flip, frames_of, last_segment, look, opening, shrink, write_batches

from ergo_capture.journal import reader, scan
from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame, Position
from ergo_capture.journal.reader import Window, read_frames, read_runs
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage

CONTENT = bytes(number % 251 for number in range(2000))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 2,000 bytes."""
    path = tmp_path_factory.mktemp("window") / "file"
    path.write_bytes(CONTENT)
    return path


@given(st.lists(st.tuples(st.integers(0, 2100), st.integers(0, 700)), min_size=1, max_size=8))
def test_a_window_holds_what_the_file_does(path: Path, reads: list[tuple[int, int]]) -> None:
    """The position of a read and the size of the read-ahead do not matter."""
    file = RealStorage().open(path)
    with mock.patch.multiple(reader, _FIRST_BYTES=64, _WINDOW_BYTES=256):
        window = Window(file)
        for offset, size in reads:
            assert bytes(window.view(offset, size)) == CONTENT[offset : offset + size]
            ahead = bytes(window.ahead(offset))
            assert CONTENT[offset:].startswith(ahead)
            assert len(ahead) >= min(HEADER_BYTES, max(0, len(CONTENT) - offset))
    file.close()


def test_a_window_that_ends_earlier_is_read_again(path: Path) -> None:
    """Bytes beyond the end are not seen; changes before it are."""
    file = RealStorage().open(path)
    window = Window(file)
    assert window.size == 2000
    assert bytes(window.view(0, 1)) == CONTENT[:1]
    changed = b"new" + CONTENT[3:]
    path.write_bytes(changed)
    window.end_at(100)
    assert [bytes(window.view(0, size)) for size in (1, 2000)] == [b"n", changed[:100]]
    assert window.size == 100
    assert bytes(window.view(100, 1)) == bytes(window.ahead(100)) == b""
    window.end_at(5000)
    assert window.size == 100
    path.write_bytes(CONTENT)
    file.close()


def test_a_sequential_reader_reads_more_and_more_ahead(path: Path) -> None:
    """It reads little at first, and later as much as the bound."""
    storage = FaultyStorage()
    file = storage.open(path)
    sizes: list[int] = []
    read = file.read_at

    def noting(offset: int, size: int) -> bytes:
        sizes.append(size)
        return read(offset, size)

    with (
        mock.patch.multiple(reader, _FIRST_BYTES=64, _WINDOW_BYTES=256),
        mock.patch.object(file, "read_at", noting),
    ):
        window = Window(file)
        for offset in range(0, 2000, 8):
            window.view(offset, 8)
            window.view(offset, 8)
        assert sizes == [64, 128, *7 * [256], 16]
        window.view(0, 1000)
        assert sizes[-1] == 1000
    file.close()


def a_journal(directory: Path) -> list[Position]:
    """Write frames of many sizes in several segments; return the positions of session 1's events."""
    journal, _ = Journal.open(directory, RealStorage(), segment_bytes=8192)
    journal.commit([opening(1), opening(2)])
    positions = []
    for index in range(40):
        first, _ = journal.commit([events(1, index, 1 + index % 3, size=index * 37), events(2, index)])
        positions.append(first)
    journal.close()
    assert positions[-1].segment > 3
    return positions


@pytest.mark.parametrize("window", [64, 200, 1000, 1 << 20])
def test_runs_hold_the_frames_that_are_read_one_by_one(window: int, tmp_path: Path) -> None:
    """The frames of a run are in one segment; a frame longer than the window is a run of its own."""
    positions = a_journal(tmp_path)
    storage = FaultyStorage()
    with mock.patch.multiple(reader, _FIRST_BYTES=window, _WINDOW_BYTES=window):
        runs = list(read_runs(tmp_path, array("Q", [position.pack() for position in positions]), storage))
    frames = list(read_frames(tmp_path, positions, RealStorage()))
    assert [body for run in runs for body in run.bodies] == [frame.body for frame in frames]
    assert [first for run in runs for first in run.firsts] == [frame.header.first for frame in frames]
    assert [count for run in runs for count in run.counts] == [frame.header.count for frame in frames]
    assert [packed for run in runs for packed in run.positions] == [position.pack() for position in positions]
    assert all(len({packed >> 32 for packed in run.positions}) == 1 for run in runs)
    if window > 1000:
        assert len(runs) == len({position.segment for position in positions})
    assert sum(call.startswith("open") for call in storage.calls) == sum(
        call.startswith("close") for call in storage.calls
    )


def test_only_the_frames_asked_for_are_in_a_run(tmp_path: Path) -> None:
    """Other frames lie between them."""
    positions = a_journal(tmp_path)[3:30:2]
    runs = read_runs(tmp_path, array("Q", [position.pack() for position in positions]), RealStorage())
    assert [first for run in runs for first in run.firsts] == list(range(3, 30, 2))
    assert list(read_runs(tmp_path, array("Q"), RealStorage())) == []


@pytest.mark.parametrize("at", [0, 8, 40, 60, 64])
def test_a_run_with_a_damaged_frame_is_refused(at: int, tmp_path: Path) -> None:
    """The body or any field of the header may be changed; the frames before it are yielded."""
    positions = a_journal(tmp_path)
    bad = positions[4]
    flip(last_segment(tmp_path, bad.segment), bad.offset + at)
    runs = read_runs(tmp_path, array("Q", [position.pack() for position in positions]), RealStorage())
    found: list[int] = []

    def read() -> None:
        for run in runs:
            found.extend(run.firsts)

    with pytest.raises(JournalDamaged, match=f"offset {bad.offset}"):
        read()
    assert found == [0, 1, 2, 3]


def test_a_run_with_a_frame_of_another_segment_is_refused(tmp_path: Path) -> None:
    """Both checksums are right."""
    positions = a_journal(tmp_path)
    second = next(position for position in positions if position.segment == 2)
    (tmp_path / "0000000000000002.journal").replace(tmp_path / "0000000000000009.journal")
    with pytest.raises(JournalDamaged):
        list(read_runs(tmp_path, array("Q", [Position(9, second.offset).pack()]), RealStorage()))


def test_files_are_closed_after_reading(tmp_path: Path) -> None:
    """One file is open at a time, also if the reader stops early or a frame is damaged."""
    positions = a_journal(tmp_path)
    storage = FaultyStorage()
    assert len(list(read_frames(tmp_path, positions, storage))) == 40
    opened = [call.split()[1] for call in storage.calls if call.startswith("open")]
    assert opened == sorted({f"{position.segment:016d}.journal" for position in positions})
    assert [call for call in storage.calls if not call.startswith("read")] == [
        f"{op} {name}" for name in opened for op in ("open", "close")
    ]
    storage.calls.clear()
    frames = read_frames(tmp_path, positions, storage)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert storage.calls[-1] == f"close {opened[0]}"


@pytest.mark.parametrize("block", [*range(64, 136, 8), 200, 1 << 20])
def test_damage_ends_at_the_next_frame_wherever_a_block_ends(block: int, tmp_path: Path) -> None:
    """A header that lies across two blocks is found."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(2, 0, size=333)], [events(2, 1)]])
    segment = last_segment(tmp_path, 1)
    frames = frames_of(segment)
    for bad in (3, 4):
        flip(segment, frames[bad][1])
    with mock.patch.object(scan, "_BLOCK_BYTES", block):
        found = look(tmp_path)
    (damage,) = found.damage
    assert (damage.offset, damage.length) == (frames[3][1], frames[5][1] - frames[3][1])
    assert found.end == frames[5][1] + frames[5][0].size


def test_a_frame_without_a_body_at_the_very_end_is_found(tmp_path: Path) -> None:
    """The damage before it ends at its beginning."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)], [PendingFrame(FrameKind.PUBLISHED, 1, 1, 0, b"")]])
    segment = last_segment(tmp_path, 1)
    shrink(segment)
    (_, bad), (last, end) = frames_of(segment)[-2:]
    assert end + last.size == end + HEADER_BYTES == segment.stat().st_size
    flip(segment, bad)
    for block in (64, 1 << 20):
        with mock.patch.object(scan, "_BLOCK_BYTES", block):
            (damage,) = look(tmp_path).damage
        assert (damage.offset, damage.length) == (bad, end - bad)


@pytest.mark.parametrize("block", [64, 72, 4096])
@pytest.mark.parametrize("zeros", [0, 1, 63, 64, 5000])
def test_a_torn_end_ends_at_the_last_byte_that_is_not_zero(block: int, zeros: int, tmp_path: Path) -> None:
    """Any number of zeros may follow."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)]])
    segment = last_segment(tmp_path, 1)
    _, offset = frames_of(segment)[-1]
    segment.write_bytes(segment.read_bytes()[:offset] + b"X" * 72 + bytes(zeros))
    with mock.patch.object(scan, "_BLOCK_BYTES", block):
        found = look(tmp_path)
    assert found.torn is not None
    assert (found.torn.offset, found.torn.length, found.torn.reason) == (offset, 72, "there is no frame")
