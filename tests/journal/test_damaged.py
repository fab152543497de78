"""Damage: acknowledged data that is not what was written is found, named, and kept from the other sessions."""

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
    rotation,
    three_segments,
    write_batches,
)

from ergo_capture.journal.errors import JournalDamaged, JournalError
from ergo_capture.journal.frame import FrameKind, PendingFrame, encode_header
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.recovery import recover
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
    """P6: one bit is enough, and it is never taken for a torn end."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    offset = frames_of(segment)[3][1]
    for bit in range(64 * 8):
        flip(segment, offset + bit // 8, 1 << bit % 8)
        found = look(tmp_path)
        assert (found.torn, len(found.damage)) == (None, 1), f"bit {bit}"
        flip(segment, offset + bit // 8, 1 << bit % 8)


def test_changed_padding_changes_nothing(tmp_path: Path) -> None:
    """The zeros behind a body say nothing, and nothing is concluded from them."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    header, offset = next((h, o) for h, o in frames_of(segment) if h.length % 8)
    flip(segment, offset + 64 + header.length)
    assert look(tmp_path).damage == []


def test_a_bad_body_concerns_the_session_that_its_header_names_and_no_other(tmp_path: Path) -> None:
    """Where the header is good, a session without later frames is not doubted either."""
    write_batches(tmp_path, [[opening(1), opening(2), opening(3)], [events(1, 0)], [events(2, 0)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1] + 70)
    found = look(tmp_path)
    assert damaged(found) == [1]
    assert [damage.sessions for damage in found.damage] == [[1]]


def test_a_bad_header_concerns_every_session_that_cannot_prove_that_nothing_is_missing(tmp_path: Path) -> None:
    """A session that goes on without a gap is cleared; one that shows a gap, or is silent from then on, is not."""
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
    """P6: events and decisions are counted apart, and both have to go on."""
    write_batches(tmp_path, [[opening(1)], [events(1, 0)], [decisions(1, 0)], [events(1, 1)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1])
    assert damaged(look(tmp_path)) == [1]


def test_a_session_whose_last_bundle_is_durable_is_never_damaged(tmp_path: Path) -> None:
    """What is published needs the journal no more."""
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


def test_a_publication_whose_body_is_bad_is_a_publication(tmp_path: Path) -> None:
    """Its header says that it was the last one; that is all that recovery needs."""
    write_batches(tmp_path, [[opening(1)], [closing(1, 0)], [publication(1)], [opening(2)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1] + 64)
    assert look(tmp_path).sessions[1].done


def test_p6_rot_in_front_of_a_torn_last_batch_is_damage(tmp_path: Path) -> None:
    """P6: the header of a later batch is proof enough, though that batch itself never became durable."""
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


def test_damage_at_the_end_of_a_segment_is_damage_once_another_one_follows(tmp_path: Path) -> None:
    """Segments are begun only when everything before is durable."""
    three_segments(tmp_path)
    segment = last_segment(tmp_path, 2)
    _, offset = frames_of(segment)[-1]
    flip(segment, offset + 1)
    found = look(tmp_path)
    assert [(damage.segment, damage.offset) for damage in found.damage] == [(2, offset)]
    assert found.torn is None


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_p6_a_segment_that_was_cut_short_is_told_by_the_next_one(frames: int, tmp_path: Path) -> None:
    """P6: whole frames that are gone without a trace, even at a frame's boundary, are missed."""
    three_segments(tmp_path)
    segment = last_segment(tmp_path, 2)
    with segment.open("r+b") as file:
        file.truncate(frames_of(segment)[-frames][1])
    found = look(tmp_path)
    assert found.damage[0].segment == 2
    assert "the next segment says" in found.damage[0].reason
    assert damaged(found) != []


def test_p6_a_batch_that_was_cut_out_is_missed(tmp_path: Path) -> None:
    """P6: frames follow each other by batch and index; bytes taken out leave no bad stretch, and are missed."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(2, 0)], [events(2, 1)]])
    segment = last_segment(tmp_path, 1)
    data, offsets = segment.read_bytes(), [offset for _, offset in frames_of(segment)]
    segment.write_bytes(data[: offsets[-3]] + data[offsets[-2] :])
    found = look(tmp_path)
    assert len(found.damage) == 1
    assert 1 in damaged(found)


def test_a_missing_middle_segment_is_damage_for_whoever_spans_it(tmp_path: Path) -> None:
    """Sessions that show a gap are quarantined; one that begins behind it is not."""
    three_segments(tmp_path)
    journal = journal_in(tmp_path)
    journal.commit([opening(3), events(3, 0)])
    journal.close()
    last_segment(tmp_path, 2).unlink()
    found = look(tmp_path)
    assert "segments 2 to 2 are missing" in found.damage[0].reason
    assert damaged(found) == [1, 2]


def test_p6_a_session_that_is_first_met_behind_damage_may_be_missing_something_in_it(tmp_path: Path) -> None:
    """P6: events that came before the part's end belong to the next part, and no later frame tells of them."""
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


def test_p6_batches_that_are_missing_before_a_bad_head_concern_whom_they_may(tmp_path: Path) -> None:
    """P6: the head's body would have said where the segment before ended; its batch's number says so too."""
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


def test_p6_no_segment_goes_that_a_quarantined_sessions_damage_is_in(tmp_path: Path) -> None:
    """P6: what is not served is not deleted either, and a bad frame still says whose it was."""
    journal = journal_in(tmp_path)
    first, _ = journal.commit([opening(1), opening(2)])
    journal.commit([events(2, 0, size=3580)])
    (second,) = journal.commit([events(1, 0)])
    journal.commit([closing(2, 1), publication(2)])
    journal.close()
    assert (first.segment, second.segment) == (1, 2)
    for offset in (first.offset + 70, first.offset):
        flip(last_segment(tmp_path, 1), offset)
        recovery = recover(tmp_path, look(tmp_path), RealStorage())
        assert (list(recovery.quarantined), recovery.quarantine_segment) == (["number 1"], 1)


def test_missing_oldest_segments_are_accepted(tmp_path: Path) -> None:
    """They were retired; whether a session needed them is for recovery to say, which sees its first index."""
    three_segments(tmp_path)
    last_segment(tmp_path, 1).unlink()
    found = look(tmp_path)
    assert (found.damage, damaged(found), found.segments) == ([], [], [2, 3])
    assert found.sessions[1].open is None


def test_p6_a_bad_beginning_of_the_oldest_segment_is_damage(tmp_path: Path) -> None:
    """P6: older ones are retired only after its first batch is durable, so it cannot be torn."""
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
    """P6: a file that lost all that it held is not taken for one that never held anything."""
    three_segments(tmp_path)
    last_segment(tmp_path, 2).write_bytes(b"")
    found = look(tmp_path)
    assert "the segment is empty" in [damage.reason for damage in found.damage]
    assert damaged(found) == [1, 2]


def test_damage_is_left_as_it_is(tmp_path: Path) -> None:
    """P5: opening a damaged journal removes nothing; there may be something to salvage."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[3][1])
    before = segment.read_bytes().rstrip(b"\0")
    journal_in(tmp_path).close()
    assert segment.read_bytes().rstrip(b"\0") == before


def test_damage_stays_known_after_every_restart(tmp_path: Path) -> None:
    """P6: a damaged session is damaged at each start, whatever was appended meanwhile for others."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[3][1])
    for number in (3, 4):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        assert damaged(found) == [1]
        journal.commit([opening(number), events(number, 0)])
        journal.close()


@pytest.mark.parametrize("torn", ["a frame behind it", "a whole segment", "a segment that was only made"])
def test_p6_damage_is_damage_still_where_a_start_took_away_what_told_so(torn: str, tmp_path: Path) -> None:
    """P6: a start that dies before its first commit leaves damage at the very end, with nothing behind it."""
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


def test_bytes_behind_a_seal_concern_nobody(tmp_path: Path) -> None:
    """Nothing is acknowledged behind a seal, so what somebody put there is reported, and that is all."""
    write_batches(tmp_path, MIDDLE, seal=True)
    with last_segment(tmp_path, 1).open("ab") as file:
        file.write(b"rubbish")
    for _ in range(2):
        journal, found = Journal.open(tmp_path, RealStorage(), segment_bytes=4096)
        assert (len(found.damage), damaged(found), found.torn) == (1, [], None)
        journal.commit([events(1, found.sessions[1].next_event or 0)])
        journal.seal()
        journal.close()


def test_an_empty_part_of_damage_in_the_last_batch_is_beyond_telling(tmp_path: Path) -> None:
    """The one doubt that is left: rot inside the very last batch looks torn. Its bytes are kept."""
    write_batches(tmp_path, MIDDLE)
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-1][1] + 70)
    assert look(tmp_path).torn is not None
    journal_in(tmp_path).close()
    assert segment.with_name(segment.name + ".torn").exists()


def test_text_that_looks_like_headers_costs_little_and_changes_nothing(tmp_path: Path) -> None:
    """P4: a damaged frame full of magics is walked through once."""
    frame = PendingFrame(FrameKind.EVENTS, 1, 0, 1, b"ergJ\x01\x02\0\0" * 20_000)
    write_batches(tmp_path, [[opening(1), frame], [opening(2)]])
    segment = last_segment(tmp_path, 1)
    flip(segment, frames_of(segment)[-2][1])
    found = look(tmp_path)
    assert (len(found.damage), damaged(found)) == (1, [1])


def test_reading_a_damaged_frame_by_its_position_is_refused(tmp_path: Path) -> None:
    """P6: read_frames never hands out bytes that are not what was written."""
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
    """Put a frame behind the last one, in a batch of its own."""
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


def test_a_newer_format_version_is_refused_and_named(tmp_path: Path) -> None:
    """A journal of tomorrow is not guessed at."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), FrameKind.EVENTS, 1, version=2)
    with pytest.raises(JournalError, match="format version is 2, and this program reads up to 1") as caught:
        journal_in(tmp_path)
    assert caught.value.hint == "start the newer ergo-capture that wrote it"


def test_an_unknown_frame_that_may_be_skipped_is_skipped(tmp_path: Path) -> None:
    """The ignorable flag is the door for later versions."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), 99, 1, flags=1)
    found = look(tmp_path)
    assert (found.damage, damaged(found)) == ([], [])


def test_an_unknown_frame_that_may_not_be_skipped_needs_a_newer_program(tmp_path: Path) -> None:
    """Of a session it quarantines the session; of the journal it stops the start."""
    write_batches(tmp_path, MIDDLE)
    append_frame(last_segment(tmp_path, 1), 99, 1)
    assert "unknown kind 99 needs a newer" in str(look(tmp_path).sessions[1].damage)
    append_frame(last_segment(tmp_path, 1), 99, 0)
    with pytest.raises(JournalError, match="unknown kind 99 needs a newer"):
        look(tmp_path)


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_what_is_not_a_plain_file_at_a_segments_name_is_refused(what: str, tmp_path: Path) -> None:
    """A directory, a symbolic link or a pipe is a sentence and a hint, not a hang."""
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


def test_a_journal_that_is_a_file_or_missing_is_refused(tmp_path: Path) -> None:
    """The directory itself may be wrong too."""
    (tmp_path / "file").write_bytes(b"")
    for name, number in (("file", errno.ENOTDIR), ("missing", errno.ENOENT)):
        with pytest.raises(StorageError) as caught:
            journal_in(tmp_path / name)
        assert caught.value.errno == number
        assert caught.value.hint is not None


def test_a_segment_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """Not allowed is not damaged."""
    write_batches(tmp_path, MIDDLE)
    with pytest.raises(StorageError) as caught:
        journal_in(tmp_path, FaultyStorage({"open": [errno.EACCES]}))
    assert caught.value.hint == "check the owner and the permissions of the path"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_refused(tmp_path: Path) -> None:
    """A journal that was run as somebody else once is not continued under two owners."""
    write_batches(tmp_path, MIDDLE)
    before = last_segment(tmp_path, 1).read_bytes()
    os.chown(last_segment(tmp_path, 1), 65_534, 65_534)
    with pytest.raises(JournalError, match="belongs to another user") as caught:
        journal_in(tmp_path)
    assert caught.value.hint is not None
    assert last_segment(tmp_path, 1).read_bytes() == before


def test_a_frame_of_rotation_is_kept_with_its_session(tmp_path: Path) -> None:
    """Every kind has its place in what is found."""
    positions = write_batches(
        tmp_path,
        [[opening(1)], [events(1, 0, 2), decisions(1, 0, 2)], [rotation(1, 2), publication(1, final=False)]],
    )
    session = look(tmp_path).sessions[1]
    assert (session.open, session.rotations, session.published) == (positions[0], [positions[3]], [positions[4]])
    assert (session.next_event, session.next_decision, session.done, session.close) == (2, 2, False, None)
