"""The OPEN, ROTATE, CLOSE and PUBLISHED frames of a session are read as its history; unreadable ones are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.journal.captures import a_session
from tests.journal.hosted import HostedLife, ack_of, sends
from tests.journal.hosted import write as write_hosted
from tests.journal.journals import (
    closing,
    events,
    journal_in,
    look,
    opening,
    publication,
    recovered,
    rotation,
    write_batches,
)

from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Frame, FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Ack, Loss, Publication, Rotation, encode_body, join_losses
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.session_frames import SessionHistory, greatest_published, read_description, read_history
from ergo_capture.journal.session_stream import parts_in
from ergo_capture.storage import RealStorage


def published(part: int, *, final: bool) -> PendingFrame:
    """Return the frame that says that the bundle of a part of session 1 is durable."""
    return PendingFrame(FrameKind.PUBLISHED, 1, part, int(final), encode_body(Publication(part, "b", "m", "0" * 64)))


def history_of(directory: Path) -> SessionHistory:
    """Return the history that the small frames of session 1 give."""
    return read_history(directory, look(directory).sessions[1], RealStorage())


def test_a_history_holds_description_rotations_publications_and_closing(tmp_path: Path) -> None:
    """It has the boundary and position of each rotation, and the number of events at the end."""
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
    recovery = recovered(tmp_path)
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
    """A reader that follows the journal reports it, rather than leave out the session."""
    journal = journal_in(tmp_path)
    (position,) = journal.commit([PendingFrame(FrameKind.OPEN, 1, 0, 0, b"{}")])
    journal.close()
    frames: list[Frame] = list(read_frames(tmp_path, [position], RealStorage()))
    with pytest.raises(JournalDamaged, match="holds what no daemon writes: Object missing") as caught:
        read_description(frames[0])
    assert caught.value.hint is not None


def test_the_damage_of_the_scan_is_told_before_that_of_a_frame(tmp_path: Path) -> None:
    """The damage of the scan came first, and may be the cause."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening(), events(1, 5), closing(1, 6), rotation(1, 0)])
    journal.close()
    history = history_of(tmp_path)
    assert history.damage == "event 0 is missing from the journal: the next one there is 5"
    assert history.total == 6


def test_a_repeated_rotation_replaces_the_earlier_one(tmp_path: Path) -> None:
    """A rotation is repeated so that the segments before can be deleted; those of other parts are kept."""
    session, journal = a_session(1), journal_in(tmp_path)
    positions = journal.commit(
        [session.opening(), session.more(4), session.decide(2), session.rotate(1), session.rotate(1)]
    )
    positions += journal.commit([session.decide(), session.rotate(2)])
    journal.close()
    history = history_of(tmp_path)
    assert [(end.rotation.part, end.boundary, end.position) for end in history.rotations] == [
        (1, 2, positions[4]),
        (2, 4, positions[6]),
    ]


def test_the_open_frame_describes_the_session_and_not_a_rotation(tmp_path: Path) -> None:
    """This applies if both frames are there."""
    session, journal = a_session(1), journal_in(tmp_path)
    later = replace(session.description, program="test 2")
    body = encode_body(Rotation(1, False, "2026-01-01T00:00:00Z", later, None))
    journal.commit([session.opening(), PendingFrame(FrameKind.ROTATE, 1, 0, 0, body)])
    journal.close()
    assert history_of(tmp_path).description == session.description


# --- outcomes ---


def test_an_outcome_collects_its_acknowledgements(tmp_path: Path) -> None:
    """The acknowledgements follow the outcome, and are kept in order."""
    life = HostedLife()
    run = sends("i1", "i2")
    write_hosted(
        tmp_path,
        [life.opened(), life.events(("e1", "Command", 1, "full", {"n": 1}))],
        [life.outcome(run), life.ack("i1")],
        [life.ack("i2")],
    )
    history = history_of(tmp_path)
    assert history.damage is None
    assert history.outcome is not None
    assert history.outcome.outcome.to_result() == run
    assert history.outcome.acks == (ack_of("i1"), ack_of("i2"))


@pytest.mark.parametrize("index", [0, 7])
def test_an_acknowledgement_of_another_event_is_damage(index: int, tmp_path: Path) -> None:
    """It is also damage if there is no outcome at all."""
    life = HostedLife()
    ack = PendingFrame(FrameKind.ACK, 1, index, 0, encode_body(Ack(index, ack_of("i1"))))
    before = [life.outcome(sends("i1"))] if index else []
    write_hosted(tmp_path, [life.opened(), life.events(("e1", "Command", 1, "full", {"n": 1})), *before, ack])
    history = history_of(tmp_path)
    assert history.damage == f"an acknowledgement of event {index} has no outcome before it"
    assert (history.outcome is None) == (index == 0)


# --- lost events ---

SMALL = Loss(acknowledged=5, held=4)
LARGE = Loss(acknowledged=9, held=2, last_held="e2")


@pytest.mark.parametrize(
    ("known", "new", "joined"),
    [
        (None, SMALL, SMALL),
        (SMALL, LARGE, LARGE),
        (LARGE, SMALL, LARGE),
        (LARGE, replace(SMALL, resumed=True), replace(LARGE, resumed=True)),
        (replace(LARGE, resumed=True), SMALL, LARGE),
        (replace(SMALL, session="a"), replace(SMALL, session="b"), replace(SMALL, session="a")),
    ],
)
def test_the_greater_of_two_losses_counts(known: Loss | None, new: Loss, joined: Loss) -> None:
    """The later loss says whether a client went on."""
    assert join_losses(known, new) == joined


def loss(body: Loss) -> PendingFrame:
    """Return the frame that says that acknowledged events of session 1 are missing."""
    return PendingFrame(FrameKind.LOSS, 1, 0, 0, encode_body(body))


def test_a_part_has_the_losses_up_to_its_end(tmp_path: Path) -> None:
    """The losses in the description and in rotations count too; the current part has all."""
    session, journal = a_session(1), journal_in(tmp_path)
    first, second, third = (Loss(acknowledged=9, held=held) for held in (8, 6, 4))
    described = replace(session.description, lost=second)
    journal.commit([session.opening()])
    (where,) = journal.commit([loss(first)])
    journal.commit([PendingFrame(FrameKind.ROTATE, 1, 0, 0, encode_body(Rotation(1, False, "", described, None)))])
    journal.commit([session.more(1), session.decide(), session.rotate(2), loss(third)])
    journal.close()
    history = history_of(tmp_path)
    assert history.losses[0] == (where, first)
    assert [each for _, each in history.losses] == [first, third]
    assert [history.lost_until(part) for part in (1, 2, 3)] == [second, second, third]


def test_the_greatest_of_many_losses_counts(tmp_path: Path) -> None:
    """The last one need not be the greatest."""
    session, journal = a_session(1), journal_in(tmp_path)
    journal.commit([session.opening(), loss(SMALL), loss(LARGE), loss(SMALL)])
    journal.close()
    assert history_of(tmp_path).lost_until(1) == LARGE


def test_a_session_may_begin_with_a_loss(tmp_path: Path) -> None:
    """The events were in an earlier session that is gone."""
    session, journal = a_session(1), journal_in(tmp_path)
    session.description = replace(session.description, lost=SMALL)
    journal.commit([session.opening(), session.more(1), session.decide(), session.rotate(1), loss(LARGE)])
    journal.close()
    history = history_of(tmp_path)
    assert [history.lost_until(part) for part in (1, 2)] == [SMALL, LARGE]
    assert SessionHistory(None).lost_until(1) is None


# --- publications ---


def test_the_greatest_sequence_of_all_bundles_is_found(tmp_path: Path) -> None:
    """Frames of 0.1.0 have none, and a frame that cannot be decoded is left out."""

    def numbered(session: int, sequence: int | None) -> PendingFrame:
        body = encode_body(Publication(1, "b", "m", "0" * 64, True, sequence))
        return PendingFrame(FrameKind.PUBLISHED, session, 1, 1, body)

    assert greatest_published(tmp_path, look(tmp_path), RealStorage()) == 0
    journal = journal_in(tmp_path)
    journal.commit([opening(1), opening(2), numbered(1, None)])
    assert greatest_published(tmp_path, look(tmp_path), RealStorage()) == 0
    journal.commit([numbered(2, 7), publication(1), numbered(1, 41), numbered(2, 9)])
    journal.close()
    assert greatest_published(tmp_path, look(tmp_path), RealStorage()) == 41


# --- where a session's frames are ---


def test_a_session_names_its_oldest_and_its_newest_segment(tmp_path: Path) -> None:
    """Frames of any kind count; segments in between may hold none."""
    journal = journal_in(tmp_path)
    frames = [
        opening(1),
        events(1, 0),
        PendingFrame(FrameKind.DECISIONS, 1, 0, 1, b"[[0,0,1]]"),
        rotation(1, 1),
        loss(SMALL),
        PendingFrame(FrameKind.OUTCOME, 1, 1, 0, b"{}"),
        PendingFrame(FrameKind.ACK, 1, 1, 0, b"{}"),
        closing(1, 1),
        publication(1, final=False),
    ]
    for frame in frames:
        (position,) = journal.commit([frame])
        session = look(tmp_path).sessions[1]
        assert (session.first_segment, session.last_segment) == (1, position.segment)
        journal.commit([events(2, 0, size=3800)])
    assert journal.current_segment > 9
    journal.close()


def test_a_session_without_an_open_frame_begins_with_its_first_known_frame(tmp_path: Path) -> None:
    """The segments before that frame were deleted."""
    decision = PendingFrame(FrameKind.DECISIONS, 1, 3, 1, b"[[0,3,1]]")
    for number, frames in enumerate([[rotation(1, 3)], [events(1, 3)], [decision], [rotation(1, 3), rotation(1, 3)]]):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        write_batches(directory, [frames])
        session = look(directory).sessions[1]
        assert (session.open, session.first_segment) == (None, 1)
        (directory / "0000000000000001.journal").unlink()
    write_batches(tmp_path / "0", [[publication(1)]])
    session = look(tmp_path / "0").sessions[1]
    assert (session.first_segment, session.last_segment, session.done) == (0, 1, True)


def test_an_aside_frame_ends_a_session(tmp_path: Path) -> None:
    """The session is kept elsewhere."""
    write_batches(tmp_path, [[opening(1), PendingFrame(FrameKind.ASIDE, 1, 0, 0, b"{}")], [opening(2)]])
    sessions = look(tmp_path).sessions
    assert [(session.done, session.aside) for session in sessions.values()] == [(True, True), (False, False)]


@pytest.mark.parametrize(
    ("frames", "damage"),
    [
        ([events(1, 1)], "event 0 is missing from the journal: the next one there is 1"),
        ([events(1, 0, 2), events(1, 3)], "event 2 is missing from the journal: the next one there is 3"),
        (
            [events(1, 0, 2), PendingFrame(FrameKind.DECISIONS, 1, 1, 1, b"[[0,1,1]]")],
            "decision 0 is missing from the journal: the next one there is 1",
        ),
        ([events(1, 0, 2), rotation(1, 1)], "decision 0 is missing from the journal: the next one there is 1"),
        ([events(1, 0, 2), closing(1, 1)], "decision 0 is missing from the journal: the next one there is 1"),
        (
            [events(1, 0, 2), PendingFrame(FrameKind.CLOSE, 1, 0, 3, b"{}")],
            "event 2 is missing from the journal: the next one there is 3",
        ),
        ([events(1, 0, 2), PendingFrame(FrameKind.CLOSE, 1, 0, 2, b"{}")], None),
        ([events(1, 1), events(1, 7)], "event 0 is missing from the journal: the next one there is 1"),
    ],
)
def test_a_gap_in_a_sessions_indices_is_damage(frames: list[PendingFrame], damage: str | None, tmp_path: Path) -> None:
    """The gap may be in events or in decisions; the first one is reported."""
    write_batches(tmp_path, [[opening(1)], frames])
    assert look(tmp_path).sessions[1].damage == damage


def test_an_outcome_is_over_once_its_event_is_decided(tmp_path: Path) -> None:
    """A decision about an earlier event does not end it."""
    journal = journal_in(tmp_path)
    positions: list[Position] = journal.commit(
        [opening(1), events(1, 0, 3), PendingFrame(FrameKind.OUTCOME, 1, 1, 0, b"{}")]
    )
    positions += journal.commit([PendingFrame(FrameKind.ACK, 1, 1, 0, b"{}")])
    journal.commit([PendingFrame(FrameKind.DECISIONS, 1, 0, 1, b"[[0,0,1]]")])
    assert look(tmp_path).sessions[1].outcome == positions[2:]
    journal.commit([PendingFrame(FrameKind.DECISIONS, 1, 1, 1, b"[[0,1,1]]")])
    assert look(tmp_path).sessions[1].outcome == []
    journal.commit([PendingFrame(FrameKind.OUTCOME, 1, 2, 0, b"{}"), PendingFrame(FrameKind.OUTCOME, 1, 2, 0, b"[]")])
    journal.close()
    assert len(look(tmp_path).sessions[1].outcome) == 1
