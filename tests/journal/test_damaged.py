"""Acknowledged data that was changed or lost is found and reported as damage of the sessions that it may concern."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from crc32c import crc32c
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import (
    closing,
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
    publication,
    recovered,
    rotation,
    three_segments,
    write_batches,
)

from ergo_capture.journal.errors import JournalDamaged, JournalError
from ergo_capture.journal.frame import FrameKind, PendingFrame, encode_header
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import Verdict
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage, StorageError

MIDDLE = [
    [opening(1), opening(2)],
    [events(1, 0, 2), events(2, 0, 2)],
    [decisions(1, 0, 2), decisions(2, 0, 2), events(1, 2)],
    [events(1, 3), events(2, 2), decisions(1, 2), decisions(2, 2)],
]


def test_p6_every_changed_byte_of_a_durable_frame_is_damage_at_that_frame(tmp_path: Path) -> None:
    """P6: whatever byte of a header or body is changed, that frame is lost, all others are found, nothing is torn."""
    positions = write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    (header, offset), (_, behind) = [(h, o) for h, o in frames_of(segment) if h.kind == FrameKind.EVENTS][:2]
    assert header.session == 1
    for at in range(offset, offset + 64 + header.length):
        flip(segment, at)
        found = look(tmp_path)
        assert found.torn is None, f"byte {at - offset}"
        assert [(d.segment, d.offset, d.length) for d in found.damage] == [(1, offset, behind - offset)]
        assert found_frames(tmp_path, found) == {p for p in positions if p.offset != offset}
        assert damaged(found) == [1], f"byte {at - offset}"
        flip(segment, at)
    assert damaged(look(tmp_path)) == []


def test_p6_every_changed_bit_of_a_durable_header_is_damage(tmp_path: Path) -> None:
    """P6: it is never taken for a torn end."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    offset = frames_of(segment)[3][1]
    for bit in range(64 * 8):
        flip(segment, offset + bit // 8, 1 << bit % 8)
        found = look(tmp_path)
        assert (found.torn, len(found.damage)) == (None, 1), f"bit {bit}"
        flip(segment, offset + bit // 8, 1 << bit % 8)


def test_changed_padding_changes_nothing(tmp_path: Path) -> None:
    """The zeros after a body mean nothing."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    header, offset = next((h, o) for h, o in frames_of(segment) if h.length % 8)
    flip(segment, offset + 64 + header.length)
    assert look(tmp_path).damage == []


def test_a_bad_body_concerns_the_session_that_its_header_names_and_no_other(tmp_path: Path) -> None:
    """A session without later frames is not concerned either."""
    write_batches(tmp_path, [[opening(1), opening(2), opening(3)], [events(1, 0)], [events(2, 0)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1] + 70)
    found = look(tmp_path)
    assert damaged(found) == [1]
    assert [damage.sessions for damage in found.damage] == [[1]]


def test_a_bad_header_concerns_every_session_that_cannot_prove_that_nothing_is_missing(tmp_path: Path) -> None:
    """A session that goes on without a gap proves it; one with a gap, or without later frames, does not."""
    write_batches(
        tmp_path,
        [
            [opening(number) for number in (1, 2, 3, 4)],
            [events(4, 0), decisions(4, 0), closing(4, 1)],
            [events(1, 0), events(2, 0)],
            [events(2, 1), decisions(2, 0, 2), events(1, 1)],
        ],
    )
    segment = last_segment(tmp_path, 1)
    flip(segment, next(o for h, o in frames_of(segment) if (h.session, h.kind) == (1, FrameKind.EVENTS)))
    found = look(tmp_path)
    assert damaged(found) == [1, 3]
    assert "event 0 is missing" in str(found.sessions[1].damage)
    assert found.damage[0].sessions == [3]


def test_p6_events_that_go_on_do_not_prove_that_no_decision_is_missing(tmp_path: Path) -> None:
    """P6: events and decisions are counted separately, and both must go on."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)], [decisions(1, 0)], [events(1, 1)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1])
    assert damaged(look(tmp_path)) == [1]


def test_a_session_whose_last_bundle_is_durable_is_never_damaged(tmp_path: Path) -> None:
    """A published session does not need the journal."""
    write_batches(
        tmp_path,
        [
            [opening(1), opening(2)],
            [events(1, 0)],
            [decisions(1, 0), closing(1, 1)],
            [publication(1)],
            [events(2, 0), decisions(2, 0)],
        ],
    )
    segment = last_segment(tmp_path, 1)
    for _, offset in frames_of(segment)[3:6]:
        flip(segment, offset)
        found = look(tmp_path)
        flip(segment, offset)
        assert len(found.damage) == 1
        assert found.sessions[1].done
        assert found.sessions[2].damage is None


def test_a_last_publication_with_a_bad_body_still_ends_its_session(tmp_path: Path) -> None:
    """Its header says that it was the last one."""
    write_batches(tmp_path, [[opening(1)], [closing(1, 0)], [publication(1)], [opening(2)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1] + 64)
    assert look(tmp_path).sessions[1].done


def test_a_bad_frame_behind_the_last_publication_changes_nothing(tmp_path: Path) -> None:
    """The session is over."""
    loss = PendingFrame(FrameKind.LOSS, 1, 0, 0, b"{}")
    write_batches(tmp_path, [[opening(1)], [closing(1, 0), publication(1)], [loss], [opening(2)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1] + 64)
    assert look(tmp_path).sessions[1].done


def test_a_bad_publication_of_an_earlier_part_does_not_end_its_session(tmp_path: Path) -> None:
    """Other bad frames do not end it either."""
    for number, frame in enumerate([publication(1, final=False), PendingFrame(FrameKind.CLOSE, 1, 0, 1, b"{}")]):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        write_batches(directory, [[opening(1)], [frame], [opening(2)]])
        segment = last_segment(directory, 1)
        flip(segment, frames_of(segment)[-2][1] + 64)
        session = look(directory).sessions[1]
        assert not session.done
        assert "a frame's body is not what was written" in str(session.damage)


def test_a_session_without_its_open_frame_is_damaged_if_no_segment_was_deleted(tmp_path: Path) -> None:
    """Otherwise a deleted segment may have held it."""
    journal = journal_in(tmp_path)
    journal.commit([events(1, 0, size=3000), opening(2)])
    journal.commit([events(1, 1, size=3000), events(2, 0)])
    journal.close()
    found = look(tmp_path)
    assert [session.damage for session in found.sessions.values()] == [
        "its OPEN frame, which describes it, is missing",
        None,
    ]
    last_segment(tmp_path, 1).unlink()
    assert damaged(look(tmp_path)) == []


def test_p6_a_bad_frame_before_a_torn_last_batch_is_damage(tmp_path: Path) -> None:
    """P6: the header of a later batch proves it, though that batch was never durable itself."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)], [events(1, 1)]])
    segment = last_segment(tmp_path, 1)
    offsets = [offset for _, offset in frames_of(segment)]
    flip(segment, offsets[-2])
    flip(segment, offsets[-1] + 70)
    found = look(tmp_path)
    assert [damage.offset for damage in found.damage] == [offsets[-2]]
    assert found.torn is not None
    assert found.torn.offset == offsets[-1]
    assert damaged(found) == [1]


def test_a_bad_end_of_a_segment_is_damage_where_another_one_follows(tmp_path: Path) -> None:
    """A segment is begun only when everything before it is durable."""
    three_segments(tmp_path)
    segment = last_segment(tmp_path, 2)
    _, offset = frames_of(segment)[-1]
    flip(segment, offset + 1)
    found = look(tmp_path)
    assert [(damage.segment, damage.offset) for damage in found.damage] == [(2, offset)]
    assert found.torn is None


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_p6_the_head_of_a_segment_tells_that_the_one_before_was_cut_short(frames: int, tmp_path: Path) -> None:
    """P6: even at the boundary of a frame."""
    three_segments(tmp_path)
    segment = last_segment(tmp_path, 2)
    with segment.open("r+b") as file:
        file.truncate(frames_of(segment)[-frames][1])
    found = look(tmp_path)
    assert found.damage[0].segment == 2
    assert "the next segment says" in found.damage[0].reason
    assert damaged(found) != []


def test_p6_a_missing_batch_is_damage(tmp_path: Path) -> None:
    """P6: even where no bad stretch is left, frames do not follow each other by batch and index."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(2, 0)], [events(2, 1)]])
    segment = last_segment(tmp_path, 1)
    data, offsets = segment.read_bytes(), [offset for _, offset in frames_of(segment)]
    segment.write_bytes(data[: offsets[-3]] + data[offsets[-2] :])
    found = look(tmp_path)
    assert len(found.damage) == 1
    assert 1 in damaged(found)


def test_a_missing_segment_is_damage_for_sessions_that_span_it(tmp_path: Path) -> None:
    """A session that begins after it is not concerned."""
    three_segments(tmp_path)
    journal = journal_in(tmp_path)
    journal.commit([opening(3), events(3, 0)])
    journal.close()
    last_segment(tmp_path, 2).unlink()
    found = look(tmp_path)
    assert "segments 2 to 2 are missing" in found.damage[0].reason
    assert damaged(found) == [1, 2]


def test_p6_a_session_whose_first_frame_is_behind_damage_may_be_concerned(tmp_path: Path) -> None:
    """P6: events before the end of a part may belong to the next part, and no later frame names them."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), events(1, 0, 2), decisions(1, 0, 2), opening(2)])
    journal.commit([events(2, 0, size=3000)])
    (lost,) = journal.commit([events(1, 2, size=500)])
    journal.commit([rotation(1, 2), opening(3)])
    journal.commit([publication(1, final=False), events(2, 1), decisions(2, 0)])
    assert journal.delete_segments(lost.segment) == [1]
    journal.close()
    assert damaged(look(tmp_path)) == []
    flip(last_segment(tmp_path, lost.segment), lost.offset)
    found = look(tmp_path)
    assert damaged(found) == [1]
    assert found.damage[0].sessions == [1]


def test_p6_batches_missing_before_a_bad_head_are_damage(tmp_path: Path) -> None:
    """P6: the batch number in the header tells it, as the bad body would have."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), opening(2)])
    journal.commit([events(2, 0, size=2900)])
    (lost,) = journal.commit([events(1, 0)])
    (after, _) = journal.commit([events(2, 1, size=900), decisions(2, 0)])
    journal.commit([opening(3)])
    journal.close()
    assert (lost.segment, after.segment) == (1, 2)
    os.truncate(last_segment(tmp_path, 1), lost.offset)
    flip(last_segment(tmp_path, 2), 70)
    found = look(tmp_path)
    assert damaged(found) == [1]
    assert "batch 4, frame 0 is where batch 3, frame 0 was" in str(found.sessions[1].damage)


def test_p6_the_segments_with_the_damage_of_a_quarantined_session_are_kept(tmp_path: Path) -> None:
    """P6: a bad frame with a good header still names its session."""
    journal = journal_in(tmp_path)
    first, _ = journal.commit([opening(1), opening(2)])
    journal.commit([events(2, 0, size=3580)])
    (second,) = journal.commit([events(1, 0)])
    journal.commit([closing(2, 1), publication(2)])
    journal.close()
    assert (first.segment, second.segment) == (1, 2)
    for offset in (first.offset + 70, first.offset):
        flip(last_segment(tmp_path, 1), offset)
        recovery = recovered(tmp_path)
        assert [(s.session, s.first_segment) for s in recovery.quarantined.values()] == [("number 1", 1)]


def test_missing_oldest_segments_are_accepted(tmp_path: Path) -> None:
    """They were deleted; recovery tells whether a session needs them."""
    three_segments(tmp_path)
    last_segment(tmp_path, 1).unlink()
    found = look(tmp_path)
    assert (found.damage, damaged(found), found.segments) == ([], [], [2, 3])
    assert found.sessions[1].open is None


def test_p6_a_bad_beginning_of_the_oldest_segment_is_damage(tmp_path: Path) -> None:
    """P6: older ones are deleted only after its first batch is durable, so it cannot be torn."""
    three_segments(tmp_path)
    last_segment(tmp_path, 1).unlink()
    last_segment(tmp_path, 2).unlink()
    segment = last_segment(tmp_path, 3)
    keep = frames_of(segment)[2][1]
    segment.write_bytes(b"?" * keep + segment.read_bytes()[keep:])
    found = look(tmp_path)
    assert [(damage.offset, damage.length) for damage in found.damage] == [(0, keep)]
    segment.write_bytes(b"")
    found = look(tmp_path)
    assert ([damage.reason for damage in found.damage], found.empty) == (["the segment is empty"], None)


def test_p6_an_empty_segment_in_the_middle_is_damage(tmp_path: Path) -> None:
    """P6: it is not taken for one that was never written to."""
    three_segments(tmp_path)
    last_segment(tmp_path, 2).write_bytes(b"")
    found = look(tmp_path)
    assert "the segment is empty" in [damage.reason for damage in found.damage]
    assert damaged(found) == [1, 2]


def test_damage_is_left_as_it_is(tmp_path: Path) -> None:
    """P5: opening a damaged journal removes nothing that could be salvaged."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[3][1])
    before = segment.read_bytes().rstrip(b"\0")
    journal_in(tmp_path).close()
    assert segment.read_bytes().rstrip(b"\0") == before


def test_zeros_and_a_torn_end_behind_damage_are_cut_off(tmp_path: Path) -> None:
    """The damage itself stays."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    frames = frames_of(segment)
    flip(segment, frames[3][1])
    end = frames[-1][1] + frames[-1][0].size
    assert segment.stat().st_size > end
    journal_in(tmp_path).close()
    assert segment.stat().st_size == end
    with segment.open("ab") as file:
        file.write(b"torn")
    journal_in(tmp_path).close()
    assert segment.stat().st_size == end + 64 + 8  # the frame that proves the damage
    assert segment.with_name(segment.name + ".torn").read_bytes() == b"torn"


def test_damage_is_found_again_at_every_start(tmp_path: Path) -> None:
    """P6: whatever was appended meanwhile for other sessions."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[3][1])
    for number in (3, 4):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        assert damaged(found) == [1]
        journal.commit([opening(number), events(number, 0)])
        journal.close()


@pytest.mark.parametrize("torn", ["a frame behind it", "a whole segment", "a segment that was only made"])
def test_p6_damage_before_a_torn_end_stays_damage_after_repair(torn: str, tmp_path: Path) -> None:
    """P6: after a start that is killed before its first commit, the damage is at the very end."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1), opening(2), events(2, 0), decisions(2, 0)])
    (bad,) = journal.commit([events(1, 0)])
    last = journal.commit([events(2, 1, size=40 if torn == "a frame behind it" else 4000)])[0]
    journal.close()
    if torn == "a segment that was only made":
        last_segment(tmp_path, 2).write_bytes(bytes(4096))
    else:
        flip(last_segment(tmp_path, last.segment), 64 if torn == "a whole segment" else last.offset + 64)
    flip(last_segment(tmp_path, 1), bad.offset + 64)
    said = look(tmp_path)
    assert damaged(said) == [1]
    for _ in range(3):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        journal.close()
        assert ([str(d) for d in found.damage], damaged(found)) == ([str(d) for d in said.damage], [1])
    assert (found.torn, found.segments) == (None, [1])
    journal, _ = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    journal.commit([events(2, found.sessions[2].next_event or 0)])
    journal.close()
    found = look(tmp_path)
    assert ([str(d) for d in found.damage], damaged(found)) == ([str(d) for d in said.damage], [1])


@pytest.mark.parametrize("zeros", [0, 3, 100])
def test_bytes_behind_a_seal_concern_nobody(zeros: int, tmp_path: Path) -> None:
    """Nothing is acknowledged after a seal, so the bytes are only reported."""
    write_batches(tmp_path, MIDDLE, seal=True)
    with last_segment(tmp_path, 1).open("ab") as file:
        file.write(b"rubbish" + bytes(zeros))
    for _ in range(2):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        assert (len(found.damage), damaged(found), found.torn) == (1, [], None)
        assert last_segment(tmp_path, 1).read_bytes().endswith(b"rubbish")
        journal.commit([events(1, found.sessions[1].next_event or 0)])
        journal.seal()
        journal.close()


def test_a_torn_end_behind_bytes_behind_a_seal_is_cut_off(tmp_path: Path) -> None:
    """Otherwise the next segment would make damage of it."""
    write_batches(tmp_path, [[opening(1)]], seal=True)
    segment = last_segment(tmp_path, 1)
    after(segment, FrameKind.EVENTS, 1)
    data = segment.read_bytes()
    whole = data[-72:]
    segment.write_bytes(data[:-72] + b"rubbish!" + whole + b"torn" * 50)
    journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
    assert found.torn is not None
    assert segment.read_bytes()[:-72] == data[:-72] + b"rubbish!" + whole  # before the frame that proves the damage
    journal.commit([opening(2)])
    journal.close()
    assert [damage.reason for damage in look(tmp_path).damage] == ["there is no frame"]


def test_damage_in_the_last_batch_is_taken_for_torn(tmp_path: Path) -> None:
    """Nothing tells the two apart in the last batch. Its bytes are kept."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-1][1] + 70)
    assert look(tmp_path).torn is not None
    journal_in(tmp_path).close()
    assert segment.with_name(segment.name + ".torn").exists()


def test_a_damaged_frame_full_of_magics_is_scanned_once(tmp_path: Path) -> None:
    """P4: text that looks like headers does not slow the scan down."""
    frame = PendingFrame(FrameKind.EVENTS, 1, 0, 1, b"ergJ\x01\x02\0\0" * 20_000)
    write_batches(tmp_path, [[opening(1), frame], [opening(2)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1])
    found = look(tmp_path)
    assert (len(found.damage), damaged(found)) == (1, [1])


def test_p6_reading_a_damaged_frame_by_its_position_is_refused(tmp_path: Path) -> None:
    """P6: read_frames never yields bytes that are not what was written."""
    positions = write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, positions[3].offset + 70)
    frames = read_frames(tmp_path, positions, RealStorage())
    assert [next(frames).header.kind for _ in range(3)] == [FrameKind.OPEN, FrameKind.OPEN, FrameKind.EVENTS]
    with pytest.raises(JournalDamaged, match=f"offset {positions[3].offset}") as caught:
        next(frames)
    assert caught.value.hint is not None


# --- frames and files that are not ours to read ---


def append_frame(segment: Path, kind: int, session: int, *, flags: int = 0, version: int = 1) -> None:
    """Append a frame, in a batch of its own."""
    header, offset = frames_of(segment)[-1]
    data = segment.read_bytes()[: offset + header.size]
    head = encode_header(
        kind,
        header.segment,
        header.batch + 1,
        session,
        0,
        0,
        8,
        0,
        1,
        crc32c(b"whatever"),
        flags=flags,
        version=version,
    )
    segment.write_bytes(data + head + b"whatever")


def test_a_newer_format_version_is_refused_with_its_number(tmp_path: Path) -> None:
    """The hint says which program to start."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), FrameKind.EVENTS, 1, version=3)
    with pytest.raises(JournalError, match="format version is 3, and this program reads up to 2") as caught:
        journal_in(tmp_path)
    assert caught.value.hint == "start the newer ergo-capture that wrote it"


def test_an_unknown_frame_that_may_be_skipped_is_skipped(tmp_path: Path) -> None:
    """The flag is for later versions."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), 99, 1, flags=1)
    found = look(tmp_path)
    assert (found.damage, damaged(found)) == ([], [])


def test_an_unknown_frame_that_may_not_be_skipped_needs_a_newer_program(tmp_path: Path) -> None:
    """A frame of a session quarantines the session; one about the journal stops the start."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), 99, 1)
    assert "unknown kind 99 needs a newer" in str(look(tmp_path).sessions[1].damage)
    append_frame(last_segment(tmp_path, 1), 99, 0)
    with pytest.raises(JournalError, match="unknown kind 99 needs a newer"):
        look(tmp_path)


def after(
    segment: Path, kind: int, session: int, *, body: bytes = b"whatever", index: int = 0, frames: int = 1
) -> None:
    """Write a frame behind the last one, as the first frame of the next batch."""
    header, offset = frames_of(segment)[-1]
    head = encode_header(kind, header.segment, header.batch + 1, session, 0, 1, len(body), index, frames, crc32c(body))
    segment.write_bytes(segment.read_bytes()[: offset + header.size] + head + body)


def test_frames_behind_a_seal_unseal_the_journal(tmp_path: Path) -> None:
    """No daemon writes them; what they hold is not ignored."""
    write_batches(tmp_path, [[opening(1)]], seal=True)
    after(last_segment(tmp_path, 1), FrameKind.EVENTS, 1)
    found = look(tmp_path)
    assert (found.ending, found.sessions[1].next_event) == (Verdict.UNSEALED, 1)


def test_a_segment_that_begins_with_events_lacks_its_head(tmp_path: Path) -> None:
    """The end of the segment before is unknown, so something may be missing."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)]])
    segment = last_segment(tmp_path, 1)
    header, offset = frames_of(segment)[-1]
    head = encode_header(2, 2, header.batch + 1, 1, 1, 1, 8, 0, 1, crc32c(b"whatever"))
    segment.write_bytes(segment.read_bytes()[: offset + header.size])
    last_segment(tmp_path, 2).write_bytes(head + b"whatever")
    found = look(tmp_path)
    assert [damage.reason for damage in found.damage] == ["the segment's first frame is missing"]
    assert damaged(found) == [1, 2]


@pytest.mark.parametrize(("index", "frames"), [(1, 1), (0, 0)])
def test_a_frame_with_an_impossible_index_is_torn(index: int, frames: int, tmp_path: Path) -> None:
    """Both of its checksums are right."""
    write_batches(tmp_path, [[opening(1)]])
    segment = last_segment(tmp_path, 1)
    after(segment, FrameKind.EVENTS, 1, index=index, frames=frames)
    found = look(tmp_path)
    assert found.torn is not None
    assert (found.torn.reason, found.sessions[1].next_event) == ("there is no frame", 0)


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_a_segment_that_is_not_a_plain_file_is_refused(what: str, tmp_path: Path) -> None:
    """A directory, a symbolic link or a pipe is an error with a hint."""
    path = last_segment(tmp_path, 1)
    if what == "directory":
        path.mkdir()
    elif what == "link":
        (tmp_path / "elsewhere").write_bytes(b"")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a plain file") as caught:
        journal_in(tmp_path)
    assert caught.value.hint is not None


def test_a_journal_directory_that_is_a_file_or_missing_is_refused(tmp_path: Path) -> None:
    """The error has a hint."""
    (tmp_path / "file").write_bytes(b"")
    for name, number in (("file", errno.ENOTDIR), ("missing", errno.ENOENT)):
        with pytest.raises(StorageError) as caught:
            journal_in(tmp_path / name)
        assert caught.value.errno == number
        assert caught.value.hint is not None


def test_a_segment_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """It is not taken for damaged."""
    write_batches(tmp_path, MIDDLE)
    with pytest.raises(StorageError) as caught:
        journal_in(tmp_path, FaultyStorage({"open": [errno.EACCES]}))
    assert caught.value.hint == "check the owner and the permissions of the path"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_refused(tmp_path: Path) -> None:
    """A journal has one owner."""
    write_batches(tmp_path, MIDDLE)
    before = last_segment(tmp_path, 1).read_bytes()
    os.chown(last_segment(tmp_path, 1), 65_534, 65_534)
    with pytest.raises(JournalError, match="belongs to another user") as caught:
        journal_in(tmp_path)
    assert caught.value.hint is not None
    assert last_segment(tmp_path, 1).read_bytes() == before


def test_the_report_holds_rotations_and_publications_of_a_session(tmp_path: Path) -> None:
    """They have their positions."""
    positions = write_batches(
        tmp_path,
        [[opening(1)], [events(1, 0, 2), decisions(1, 0, 2)], [rotation(1, 2), publication(1, final=False)]],
    )
    session = look(tmp_path).sessions[1]
    assert (session.open, session.rotations, session.published) == (positions[0], [positions[3]], [positions[4]])
    assert (session.next_event, session.next_decision, session.done, session.close) == (2, 2, False, None)
