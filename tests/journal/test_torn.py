"""Torn ends: what was never acknowledged is cut off, a copy is kept, and nothing else is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.journal.journals import (
    damaged,
    decisions,
    events,
    flip,
    found_frames,
    frames_of,
    journal_in,
    last_segment,
    look,
    opening,
    three_segments,
    write_batches,
)

from ergo_capture.journal.frame import Position
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage


def contents(directory: Path) -> dict[str, bytes]:
    """Return the contents of all files in a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_p5_the_whole_frames_of_a_journal_cut_anywhere_are_kept(tmp_path: Path) -> None:
    """P5: at every byte offset of the last segment, the frames before the cut are found and nothing is damage."""
    positions = three_segments(tmp_path)
    last = last_segment(tmp_path)
    frames = [(offset, offset + 64 + header.length, offset + header.size) for header, offset in frames_of(last)]
    assert len(frames) > 6
    for cut in range(last.stat().st_size, -1, -1):
        with last.open("r+b") as file:
            file.truncate(cut)
        found = look(tmp_path)
        kept = {offset for offset, end, _ in frames if end <= cut}
        expected = {position for position in positions if position.segment < 3 or position.offset in kept}
        assert found_frames(tmp_path, found) == expected, f"cut at {cut}"
        assert (found.damage, damaged(found)) == ([], []), f"cut at {cut}"
        whole = max((end for _, end, padded in frames if padded <= cut for end in [padded]), default=0)
        in_padding = any(end <= cut < padded for _, end, padded in frames)
        assert (found.torn is not None) == (cut > whole and not in_padding), f"cut at {cut}"
        assert found.empty == (3 if cut == 0 else None), f"cut at {cut}"


def test_p4_a_journal_cut_near_its_end_is_opened_and_goes_on(tmp_path: Path) -> None:
    """P4, P5: also where only zeros after the last frame are gone, as in a copy that was cut off."""
    three_segments(tmp_path)
    data = last_segment(tmp_path).read_bytes()
    for cut in range(len(data) - 400, len(data) + 1):
        last_segment(tmp_path).write_bytes(data[:cut])
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        added = journal.commit([opening(3), events(3, 0)])
        journal.close()
        assert (found.damage, damaged(found)) == ([], []), f"cut at {cut}"
        again = look(tmp_path)
        assert (again.torn, again.damage, damaged(again)) == (None, [], []), f"cut at {cut}"
        assert found_frames(tmp_path, again) == found_frames(tmp_path, found) | set(added), f"cut at {cut}"
        last_segment(tmp_path, added[0].segment).unlink()
        for copy in tmp_path.glob("*.torn*"):
            copy.unlink()


@pytest.mark.parametrize("zeros", [1, 7, 8, 63, 64, 511, 512, 4096, 100_000])
def test_preallocated_zeros_are_not_a_torn_end(zeros: int, tmp_path: Path) -> None:
    """They are not damage either, whatever their size."""
    positions = three_segments(tmp_path)
    with last_segment(tmp_path).open("ab") as file:
        file.write(bytes(zeros))
    found = look(tmp_path)
    assert (found.torn, found.damage, damaged(found)) == (None, [], [])
    assert found_frames(tmp_path, found) == set(positions)


def test_a_frame_whose_body_is_zeros_is_torn(tmp_path: Path) -> None:
    """The header reached the disk, the rest of the last frame did not."""
    three_segments(tmp_path)
    last = last_segment(tmp_path)
    _, offset = frames_of(last)[-1]
    data = last.read_bytes()
    last.write_bytes(data[: offset + 64] + bytes(len(data) - offset - 64))
    found = look(tmp_path)
    assert found.torn is not None
    assert (found.torn.offset, found.torn.frames, damaged(found)) == (offset, 0, [])


def test_a_bad_frame_before_whole_ones_of_its_own_batch_is_torn(tmp_path: Path) -> None:
    """Pages of a batch reach the disk in any order; whole frames after a bad one prove nothing."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0), events(2, 0), events(1, 1)]])
    last = last_segment(tmp_path, 1)
    bad = frames_of(last)[-3][1]
    flip(last, bad + 70)
    found = look(tmp_path)
    assert found.torn is not None
    assert (found.torn.offset, found.torn.frames) == (bad, 2)
    assert (found.damage, damaged(found)) == ([], [])
    assert found.sessions[2].next_event == 0


def test_whole_frames_before_a_bad_one_of_their_batch_are_kept(tmp_path: Path) -> None:
    """Keeping more than was acknowledged is allowed; the report says how many frames of the batch are there."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0), events(1, 1), events(1, 2)]])
    flip(last_segment(tmp_path, 1), frames_of(last_segment(tmp_path, 1))[-2][1])
    found = look(tmp_path)
    assert found.sessions[1].next_event == 1
    assert (found.last_batch, found.last_frames) == (2, 1)


def test_p5_what_is_cut_off_is_kept_beside_the_segment(tmp_path: Path) -> None:
    """P5: the copy holds the torn bytes, the segment what is left."""
    three_segments(tmp_path)
    last = last_segment(tmp_path)
    before = last.read_bytes()
    _, offset = frames_of(last)[-1]
    last.write_bytes(before[:-20])
    journal_in(tmp_path).close()
    copy = last.with_name(last.name + ".torn")
    assert last.read_bytes() == before[:offset]
    assert copy.read_bytes() == before[offset:-20].rstrip(b"\0") or copy.read_bytes() == before[offset:-20]


def test_p5_repairing_twice_changes_nothing_more(tmp_path: Path) -> None:
    """P5: opening again finds a clean journal and leaves every file as it is."""
    three_segments(tmp_path)
    last = last_segment(tmp_path)
    last.write_bytes(last.read_bytes()[:-20])
    journal_in(tmp_path).close()
    mended = contents(tmp_path)
    for _ in range(2):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        journal.close()
        assert (found.torn, found.damage) == (None, [])
        assert contents(tmp_path) == mended


def test_p5_an_interrupted_repair_keeps_one_copy(tmp_path: Path) -> None:
    """P5: after a kill between copying and cutting, the next start cuts and does not copy again."""
    three_segments(tmp_path)
    last = last_segment(tmp_path)
    torn = last.read_bytes()[:-20]
    last.write_bytes(torn)
    journal_in(tmp_path).close()
    last.write_bytes(torn)
    journal_in(tmp_path).close()
    assert len([name for name in contents(tmp_path) if ".torn" in name]) == 1


def test_p5_a_second_torn_end_does_not_overwrite_the_first_copy(tmp_path: Path) -> None:
    """P5: where a segment's number is used again, both copies are kept."""
    for body in (b"one", b"other"):
        write_batches(tmp_path, [[events(1, 0), events(1, 1)]])
        segment = last_segment(tmp_path, 1)
        data = segment.read_bytes()
        segment.write_bytes(body + data[3:])
        journal_in(tmp_path).close()
        assert not segment.exists()
    assert [name for name in contents(tmp_path) if ".torn" in name] == [
        "0000000000000001.journal.torn",
        "0000000000000001.journal.torn.2",
    ]


def test_p1_a_repaired_journal_is_appended_to(tmp_path: Path) -> None:
    """P1: what was kept and ten more batches are found."""
    positions = three_segments(tmp_path)
    last = last_segment(tmp_path)
    last.write_bytes(last.read_bytes()[:-20])
    journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    index, decided = found.sessions[1].next_event, found.sessions[1].next_decision
    assert index is not None
    assert decided is not None
    more = [
        position for n in range(10) for position in journal.commit([events(1, index + n), decisions(1, decided + n)])
    ]
    journal.close()
    again = look(tmp_path)
    assert (again.torn, again.damage, damaged(again)) == (None, [], [])
    assert found_frames(tmp_path, again) == {*positions[:-1], *more}
    assert again.sessions[1].next_event == index + 10


def test_a_torn_first_batch_of_a_segment_behind_a_torn_one_is_torn(tmp_path: Path) -> None:
    """Two crashes in a row: the second segment begins a batch of its own, whatever the first one ended in."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0), events(1, 1)]])
    first = last_segment(tmp_path, 1)
    first.write_bytes(first.read_bytes()[: frames_of(first)[-1][1] + 10])
    write_batches(tmp_path, [[events(1, 1), events(1, 2)]])
    flip(last_segment(tmp_path, 2), 3)
    found = look(tmp_path)
    assert found.torn is not None
    assert (found.torn.segment, found.torn.offset, found.torn.frames) == (2, 0, 2)
    assert (found.damage, damaged(found)) == ([], [])


def test_a_torn_end_behind_damage_is_still_torn(tmp_path: Path) -> None:
    """Damage in an early batch does not make damage of a last batch that was never synced."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(2, 0), events(2, 1), events(2, 2)]])
    segment = last_segment(tmp_path, 1)
    offsets = [offset for _, offset in frames_of(segment)]
    flip(segment, offsets[-4] + 70)
    flip(segment, offsets[-2] + 70)
    found = look(tmp_path)
    assert damaged(found) == [1]
    assert [damage.offset for damage in found.damage] == [offsets[-4]]
    assert found.torn is not None
    assert (found.torn.offset, found.torn.frames) == (offsets[-2], 1)


def test_a_segment_without_a_frame_is_removed(tmp_path: Path) -> None:
    """A crash after a segment was created leaves zeros only; its number is used again."""
    write_batches(tmp_path, [[opening(1)]])
    last_segment(tmp_path, 2).write_bytes(bytes(4096))
    journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    assert (found.segments, found.empty, damaged(found)) == ([1], None, [])
    (position,) = journal.commit([events(1, 0)])
    journal.close()
    assert position == Position(2, position.offset)


def test_unfinished_segments_and_copies_are_removed(tmp_path: Path) -> None:
    """Files with other names stay and are reported."""
    write_batches(tmp_path, [[opening(1)]])
    for name in ("0000000000000002.journal.new", "0000000000000001.journal.torn.new", "notes.txt", "my.journal.new"):
        (tmp_path / name).write_bytes(b"x")
    journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    journal.close()
    assert found.foreign == ["my.journal.new", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000000000001.journal", *found.foreign]


def test_an_impossible_length_is_never_allocated(tmp_path: Path) -> None:
    """A last frame with a length of two gigabytes is torn."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)]])
    segment = last_segment(tmp_path, 1)
    _, offset = frames_of(segment)[-1]
    for shift in (43, 42, 41):
        flip(segment, offset + shift + 4, 0x7F)
    found = look(tmp_path)
    assert found.torn is not None
    assert found.torn.offset == offset
    assert found.sessions[1].damage is None


def test_scanning_changes_nothing(tmp_path: Path) -> None:
    """This holds even for a torn journal."""
    three_segments(tmp_path)
    last = last_segment(tmp_path)
    last.write_bytes(last.read_bytes()[:-20])
    before = contents(tmp_path)
    look(tmp_path)
    assert contents(tmp_path) == before


def test_progress_is_reported_for_each_segment(tmp_path: Path) -> None:
    """The number of segments is reported too."""
    three_segments(tmp_path)
    steps: list[tuple[int, int]] = []
    journal, _ = Journal.open(tmp_path, RealStorage(), segment_bytes=4096, on_progress=lambda *step: steps.append(step))
    journal.close()
    assert steps == [(0, 3), (1, 3), (2, 3)]


def test_an_empty_directory_is_an_empty_journal(tmp_path: Path) -> None:
    """The first start finds it."""
    found = look(tmp_path)
    assert (found.segments, found.last_batch, found.next_session, found.torn) == ([], 0, 1, None)


def test_p5_a_copy_of_a_journal_is_repaired_to_the_same_bytes(tmp_path: Path) -> None:
    """P5: repair depends on the bytes alone."""
    original, copy = tmp_path / "a", tmp_path / "b"
    original.mkdir()
    three_segments(original)
    last = last_segment(original)
    last.write_bytes(last.read_bytes()[:-33])
    shutil.copytree(original, copy)
    journal_in(original).close()
    journal_in(copy).close()
    assert contents(original) == contents(copy)
