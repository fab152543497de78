"""What the OPEN, ROTATE, CLOSE and PUBLISHED frames of a session say, and what is made of one that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.journal.captures import a_session
from tests.journal.journals import closing, journal_in, look, publication, rotation

from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Frame, FrameKind, PendingFrame
from ergo_capture.journal.payloads import Publication, encode_body
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.recovery import recover
from ergo_capture.journal.session_frames import SessionHistory, read_description, read_history
from ergo_capture.journal.session_stream import parts_in
from ergo_capture.storage import RealStorage


def published(part: int, *, final: bool) -> PendingFrame:
    """The frame that says that the bundle of a part of session 1 is durable."""
    return PendingFrame(FrameKind.PUBLISHED, 1, part, int(final), encode_body(Publication(part, "b", "m", "0" * 64)))


def history_of(directory: Path) -> SessionHistory:
    """What the small frames of session 1 say."""
    return read_history(directory, look(directory).sessions[1], RealStorage())


def test_a_history_holds_description_rotations_publications_and_closing(tmp_path: Path) -> None:
    """With the boundary and the position of each rotation, and the number of events at the end."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening(), session.more(3)])
    journal.commit([session.decide(2)])
    (position,) = journal.commit([session.rotate(1)])
    journal.commit([session.decide(), published(1, final=False), session.closing()])
    journal.close()
    history = history_of(tmp_path)
    assert (history.description, history.damage) == (session.description, None)
    (end,) = history.rotations
    assert (end.rotation.part, end.boundary, end.position) == (1, 2, position)
    assert {part: publication.bundle for part, publication in history.publications.items()} == {1: "b"}
    assert history.closing is not None
    assert (history.closing.ended, history.total) == ("complete", 3)


def test_a_history_without_an_open_frame_takes_the_description_from_a_rotation(tmp_path: Path) -> None:
    """The segment with the OPEN frame is deleted once the first part is in a bundle."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening(), session.more(2)])
    journal.commit([session.decide()])
    while journal.current_segment == 1:
        journal.commit([PendingFrame(FrameKind.PUBLISHED, 9, 1, 0, b'{"part":1}' * 50)])
    journal.commit([session.rotate(1)])
    journal.commit([session.more(1)])
    assert journal.delete_segments(journal.current_segment) == [1]
    journal.close()
    assert look(tmp_path).sessions[1].open is None
    assert history_of(tmp_path).description == session.description


@pytest.mark.parametrize("frame", [rotation(1, 0), closing(1, 0), publication(1, final=False)])
def test_a_frame_that_cannot_be_decoded_is_left_out_and_reported(frame: PendingFrame, tmp_path: Path) -> None:
    """Recovery quarantines its session, and the session's stream is damaged; the rest of the history is there."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening()])
    journal.commit([frame])
    journal.close()
    history = history_of(tmp_path)
    assert (history.rotations, history.publications, history.closing) == ([], {}, None)
    assert history.description == session.description
    assert "frame 0 of batch 2 holds what no daemon writes" in str(history.damage)
    recovery = recover(tmp_path, look(tmp_path), RealStorage())
    assert (recovery.sessions, recovery.reasons) == ([], {"s1": history.damage})
    (part,) = parts_in(tmp_path, RealStorage())
    assert part.damage == history.damage


def test_a_close_frame_that_cannot_be_decoded_still_says_how_many_events_there_were(tmp_path: Path) -> None:
    """The number is in the frame's header."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening(), session.more(2), session.decide(2), closing(1, 2)])
    journal.close()
    history = history_of(tmp_path)
    assert (history.closing, history.total) == (None, 2)


def test_an_open_frame_without_a_description_is_damage(tmp_path: Path) -> None:
    """A reader that follows the journal says so, rather than to leave the session out."""
    journal = journal_in(tmp_path)
    (position,) = journal.commit([PendingFrame(FrameKind.OPEN, 1, 0, 0, b"{}")])
    journal.close()
    frames: list[Frame] = list(read_frames(tmp_path, [position], RealStorage()))
    with pytest.raises(JournalDamaged, match="holds what no daemon writes") as caught:
        read_description(frames[0])
    assert caught.value.hint is not None
