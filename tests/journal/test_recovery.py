"""Recovery rebuilds every field of a session, or gives the reason why the session cannot be rebuilt."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.journal.captures import LIMITS, Written, a_session
from tests.journal.hosted import HostedLife, sets
from tests.journal.hosted import write as write_hosted
from tests.journal.journals import (
    closing,
    events,
    flip,
    frames_of,
    journal_in,
    last_segment,
    look,
    opening,
    recovered,
    shrink,
    the_session,
)

from ergo_capture.journal.decision_rows import DecisionOutcome, DecisionRows, Refusal, read_decisions
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Loss, Publication, encode_body
from ergo_capture.journal.recovery import PendingPublication, RecoveredSession, Recovery, recover
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.storage import RealStorage

#: Limits with which events may be deferred, and limits without, whose frames are read together.
CONSTRAINTS = [pytest.param(LIMITS, id="limited"), pytest.param(Constraints(max_retries=1), id="unlimited")]


def session_with(constraints: Constraints, *, number: int = 1, engine: str = "fixed") -> Written:
    """Return a session of which nothing is written yet."""
    session = a_session(number)
    session.description = replace(session.description, constraints=constraints, engine=engine)
    return session


def reason(directory: Path) -> str:
    """Return the reason why the one session of a journal is quarantined."""
    found = recovered(directory)
    assert found.sessions == []
    ((name, why),) = found.reasons.items()
    assert name == "s1"
    return why


def packed(*positions: Position) -> array[int]:
    """Return packed positions."""
    return array("Q", [position.pack() for position in positions])


def written_in(directory: Path, *batches: list[PendingFrame]) -> list[Position]:
    """Commit batches to a new journal; return the positions."""
    journal = journal_in(directory, segment_bytes=1 << 16)
    positions = [position for batch in batches for position in journal.commit(batch)]
    journal.close()
    return positions


def published(part: int, *, final: bool = False) -> PendingFrame:
    """Return the frame that says that a bundle of session 1 is durable."""
    body = encode_body(Publication(part, f"b{part}", "m", "0" * 64, final, 40 + part))
    return PendingFrame(FrameKind.PUBLISHED, 1, part, int(final), body)


def ids(first: int, end: int, session: int = 1) -> list[str]:
    """Return the ids of a session's events."""
    return [f"s{session}-{number}" for number in range(first, end)]


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("engine", ["fixed", "scripted"])
def test_a_session_is_rebuilt_as_it_was(constraints: Constraints, engine: str, tmp_path: Path) -> None:
    """Its counts, ids, frames and supervisor are as before; the undecided events are next."""
    session = session_with(constraints, engine=engine)
    frames = [session.opening(), session.more(5), session.more(4)]
    decided = [session.decide(6), session.decide(8)]
    positions = written_in(tmp_path, frames, decided[:1], [session.more(2), *decided[1:]])
    found = the_session(tmp_path)
    assert (found.number, found.description, found.closing) == (1, session.description, None)
    assert (found.part, found.first, found.segment, found.part_segment, found.last_segment) == (1, 0, 1, 1, 1)
    assert (found.accepted, found.decided, found.last_event_id) == (11, 8, "s1-10")
    assert [event.event_id for event in found.undecided] == ids(8, 11)
    assert found.undecided == session.events[8:]
    assert found.ids == set(ids(0, 11))
    assert found.event_frames == packed(positions[1], positions[2], positions[4])
    assert found.decision_frames == packed(positions[3], positions[5])
    assert found.event_bytes == sum(len(frame.body) for frame in frames[1:]) + len(session_lines(session, 9, 11))
    assert session.supervisor is not None
    assert found.supervisor.now == session.supervisor.now
    assert found.supervisor._next_episode == session.supervisor._next_episode
    rows = [row for frame in decided for row in read_decisions(frame.body)]
    runs = [row for row in rows if isinstance(row, DecisionOutcome) and row.termination is not None]
    assert 0 < len(runs) < 8
    assert found.terminations == Counter(run.termination for run in runs)
    assert (found.lost, found.rotation, found.store, found.refused, found.unpublished) == (None, None, None, 0, [])
    assert (found.outcome, found.interruption, found.left_over) == (None, None, None)
    assert (found.attempts is None) == (engine == "fixed")
    assert found.attempts is None or len(found.attempts) == len(runs)


def session_lines(session: Written, first: int, end: int) -> bytes:
    """Return the lines of a session's events, as they are sent."""
    other = Written(session.number, session.description)
    body = other.more(end).body
    return b"".join(line + b"\n" for line in body.split(b"\n")[first:end])


def test_an_engine_that_counts_attempts_is_told_of_those_before(tmp_path: Path) -> None:
    """Retries are included; each attempt has the id of the event that was run, in order."""
    session = session_with(Constraints(max_retries=1), engine="scripted")
    lines = b"".join(
        b'{"type":"event","event":{"event_id":"s1-%d","kind":"Command","at":{"secs":0,"nanos":0}}}\n' % number
        for number in range(5)
    )
    rows = b'[[0,0,2],[2,2,"Completed",1,[],[],null],[2,3,"TimedOut",1,[],[],null],[0,4,1]]'
    written_in(
        tmp_path,
        [session.opening(), PendingFrame(FrameKind.EVENTS, 1, 0, 5, lines)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 5, rows)],
    )
    found = the_session(tmp_path)
    assert found.attempts == [("s1-0", 1), ("s1-1", 1), ("s1-2", 2), ("s1-3", 2), ("s1-4", 1)]
    assert found.terminations == Counter({RunTermination.Completed: 4, RunTermination.TimedOut: 1})


def test_a_new_session_is_as_its_open_frame_leaves_it(tmp_path: Path) -> None:
    """Recovery finds the same in the journal."""
    session = session_with(Constraints())
    session.description = replace(session.description, lost=Loss(acknowledged=5, held=0))
    written_in(tmp_path, [session.opening()])
    new, found = RecoveredSession.new(1, session.description, 1), the_session(tmp_path)
    for field in RecoveredSession.__dataclass_fields__:
        if field not in ("supervisor", "last_segment"):
            assert getattr(new, field) == getattr(found, field), field
    assert new.supervisor.graph_id == found.supervisor.graph_id == "g"


def test_a_closed_session_is_over_but_for_its_bundle(tmp_path: Path) -> None:
    """It is not served; only its last part is published."""
    session = session_with(Constraints())
    written_in(tmp_path, [session.opening(), session.more(2), session.decide(), session.closing()])
    found = the_session(tmp_path)
    assert found.closing is not None
    assert (found.closing.ended, found.accepted, found.decided, found.undecided) == ("complete", 2, 2, [])


def test_a_row_of_decisions_may_be_about_events_of_many_segments(tmp_path: Path) -> None:
    """The row is taken piece by piece."""
    session = session_with(Constraints())
    one, two, three = [session.opening(), session.more(1)], [session.more(1)], [session.more(6)]
    rows = PendingFrame(FrameKind.DECISIONS, 1, 0, 3, b"[[0,0,3]]")
    in_segments(tmp_path, one, two, [*three, rows])
    found = next(each for each in recovered(tmp_path).sessions if each.number == 1)
    assert (found.accepted, found.decided) == (8, 3)
    assert [event.event_id for event in found.undecided] == ids(3, 8)


def test_a_row_may_begin_within_a_segment_and_end_in_another(tmp_path: Path) -> None:
    """It follows a decision that is not plain."""
    session = session_with(Constraints())
    rows = PendingFrame(FrameKind.DECISIONS, 1, 0, 3, b'[[2,0,"TimedOut",1,[],[],null],[0,1,2]]')
    in_segments(tmp_path, [session.opening(), session.more(2)], [session.more(1), rows])
    found = next(each for each in recovered(tmp_path).sessions if each.number == 1)
    assert (found.accepted, found.decided, found.undecided) == (3, 3, [])
    assert found.terminations == Counter({RunTermination.Completed: 2, RunTermination.TimedOut: 1})


# --- parts ---


@pytest.mark.parametrize("constraints", CONSTRAINTS)
def test_parts_that_are_not_published_are_returned(constraints: Constraints, tmp_path: Path) -> None:
    """Each part has its own frames; the supervisor of the last one begins with it."""
    session = session_with(constraints)
    loss = Loss(acknowledged=9, held=7)
    first = [session.opening(), session.more(3), session.decide(), session.rotate(1)]
    second = [session.more(2), session.more(2), session.decide(), session.rotate(2)]
    lost = PendingFrame(FrameKind.LOSS, 1, 0, 0, encode_body(loss))
    positions = written_in(tmp_path, first, second, [session.more(1), lost])
    found = the_session(tmp_path)
    assert found.unpublished == [
        PendingPublication(1, 0, 3, "rotated", False, packed(positions[1]), packed(positions[2]), 1),
        PendingPublication(2, 3, 4, "rotated", False, packed(positions[4], positions[5]), packed(positions[6]), 1),
    ]
    assert (found.part, found.first, found.accepted, found.decided, found.lost) == (3, 7, 8, 7, loss)
    assert (found.event_frames, found.decision_frames) == (packed(positions[8]), array("Q"))
    assert found.event_bytes == len(session_lines(session, 7, 8))
    assert found.rotation is not None
    assert (found.rotation.part, found.rotation.last_event_id) == (2, "s1-6")
    assert found.ids == set(ids(0, 8))
    assert (found.supervisor.graph_id, found.supervisor._next_episode) == ("g", 0)


def test_a_part_that_is_not_published_has_its_losses_and_its_store(tmp_path: Path) -> None:
    """The first part that is read begins with the store of the one before it."""
    life = HostedLife(results={"e1": sets(n=3), "e2": sets(n=5)})
    loss = Loss(acknowledged=9, held=7)
    write_hosted(
        tmp_path,
        [life.opened(), life.events(("e1", "Command", 1, "full", {"n": 1})), life.decisions()],
        [life.rotated(), life.published(1, final=False)],
        [PendingFrame(FrameKind.LOSS, 1, 0, 0, encode_body(loss))],
        [life.events(("e2", "Command", 2, "full", {"n": 1})), life.decisions(), life.rotated()],
    )
    found = the_session(tmp_path)
    (part,) = found.unpublished
    assert (part.part, part.store, part.lost) == (2, {"n": 3.0}, loss)
    assert (found.store, found.lost, found.undecided_lines) == ({"n": 5.0}, loss, b"")


@pytest.mark.parametrize("constraints", CONSTRAINTS)
def test_parts_that_are_published_are_not_read(constraints: Constraints, tmp_path: Path) -> None:
    """Their ids are in the bundles; the session begins with the part after them."""
    session = session_with(constraints)
    first = [session.opening(), session.more(3), session.decide(), session.rotate(1)]
    second = [session.more(2), session.decide(), session.rotate(2)]
    positions = written_in(tmp_path, first, [*second, published(1), published(2)], [session.more(2), session.decide(6)])
    found = the_session(tmp_path)
    assert (found.part, found.first, found.accepted, found.decided) == (3, 5, 7, 6)
    assert (found.event_frames, found.decision_frames) == (packed(positions[9]), packed(positions[10]))
    assert (found.ids, found.last_event_id, found.unpublished) == (set(ids(5, 7)), "s1-6", [])
    assert {part: publication.bundle for part, publication in found.publications.items()} == {1: "b1", 2: "b2"}
    assert recovered(tmp_path).events == 2


def test_a_part_without_events_begins_after_the_last_of_the_part_before(tmp_path: Path) -> None:
    """Its last event is the last one of the part before."""
    session = session_with(Constraints())
    written_in(tmp_path, [session.opening(), session.more(3), session.decide(), session.rotate(1)], [published(1)])
    found = the_session(tmp_path)
    assert (found.part, found.first, found.accepted, found.last_event_id) == (2, 3, 3, "s1-2")


def test_a_part_is_read_from_its_beginning_though_a_later_one_is_published(tmp_path: Path) -> None:
    """Bundles may become durable out of order."""
    session = session_with(Constraints())
    first = [session.opening(), session.more(3), session.decide(), session.rotate(1)]
    second = [session.more(2), session.decide(), session.rotate(2)]
    written_in(tmp_path, first, [*second, published(2)])
    found = the_session(tmp_path)
    assert [part.part for part in found.unpublished] == [1, 2]
    assert (found.part, found.first) == (3, 5)


def in_segments(directory: Path, *batches: list[PendingFrame]) -> None:
    """Commit batches, each to a segment of its own."""
    journal = journal_in(directory)
    for batch in batches:
        journal.commit([*batch, events(9, 0, size=3000)])
    journal.close()
    for name in [path.name for path in directory.glob("*.journal")]:
        shrink(directory / name)


def test_a_part_needs_the_segments_from_its_rotation_on(tmp_path: Path) -> None:
    """The ROTATE frame describes the session once the OPEN frame is gone; events may lie before that frame."""
    session = session_with(Constraints())
    one = [session.opening(), session.more(2), session.decide()]
    two = [session.more(1)]
    three = [session.rotate(1)]
    in_segments(tmp_path, one, two, three, [session.more(1)], [published(1)])
    found = next(each for each in recovered(tmp_path).sessions if each.number == 1)
    assert (found.segment, found.part_segment, found.last_segment) == (1, 2, 5)
    assert (found.first, found.accepted) == (2, 4)


def test_a_part_needs_its_rotation_where_its_events_are_later(tmp_path: Path) -> None:
    """The part does not need anything before its rotation."""
    session = session_with(Constraints())
    one = [session.opening(), session.more(2), session.decide()]
    two = [session.rotate(1)]
    in_segments(tmp_path, one, two, [session.more(1), session.decide(), session.rotate(2)], [session.more(1)])
    found = next(each for each in recovered(tmp_path).sessions if each.number == 1)
    assert (found.segment, found.part_segment, found.last_segment) == (1, 3, 4)


def test_refusals_of_parts_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """The ROTATE frame has their number; the ids of later refusals are kept."""
    life = HostedLife(results={"e1": sets(n=11), "e4": sets(n=11)})
    merged = ("Command", 3, "full", {"note": "n comes from the store"})
    whole = ("Command", 3, "full", {"n": 1})
    write_hosted(
        tmp_path,
        [life.opened(), life.events(("e1", *whole), ("e2", *merged), ("e3", *merged))],
        [life.decisions()],
        [life.rotated(), life.published(1, final=False)],
        [life.events(("e4", *whole), ("e5", *merged), ("e6", *merged))],
        [life.decisions()],
    )
    found = the_session(tmp_path)
    assert (found.refused, [(refusal.index, refusal.event_id) for refusal in found.refusals]) == (
        4,
        [(4, "e5"), (5, "e6")],
    )


# --- sessions that cannot be rebuilt ---

EFFECT = '{"kind":"set_context","writes":[]}'
OTHERS = [
    pytest.param("[[0,1,4]]", "s1-0", id="another episode"),
    pytest.param("[[0,0,2],[0,3,2]]", "s1-2", id="a gap of episodes"),
    pytest.param('[[0,0,2],[3,"code","message"],[0,2,1]]', "s1-2", id="a refusal"),
    pytest.param("[[0,0,2],[1,2,null],[0,3,1]]", "s1-2", id="a deferral"),
    pytest.param(f'[[0,0,2],[2,2,"Completed",0,[[{EFFECT},"00"]],[],null],[0,3,1]]', "s1-2", id="a wrong hash"),
]


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize(("rows", "event_id"), OTHERS)
def test_a_decision_that_the_events_do_not_lead_to_is_named(
    constraints: Constraints, rows: str, event_id: str, tmp_path: Path
) -> None:
    """The event is named."""
    session = session_with(constraints)
    written_in(
        tmp_path,
        [session.opening(), session.more(3), session.more(2)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 4, rows.encode())],
    )
    assert reason(tmp_path) == f"the decision recorded for event '{event_id}' is not the one it leads to"


def test_a_pump_is_not_a_plain_invocation(tmp_path: Path) -> None:
    """The events before it are plain."""
    session = session_with(Constraints())
    written_in(
        tmp_path,
        [session.opening(), session.more(5)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 5, b"[[0,0,5]]")],
    )
    assert reason(tmp_path) == "the decision recorded for event 's1-3' is not the one it leads to"


@pytest.mark.parametrize("constraints", CONSTRAINTS)
def test_decisions_without_events_are_damage(constraints: Constraints, tmp_path: Path) -> None:
    """There are never more decisions than events."""
    session = session_with(constraints)
    written_in(
        tmp_path,
        [session.opening(), session.more(2)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 3, b"[[0,0,3]]")],
    )
    assert reason(tmp_path) == "it has decisions about events that are missing"


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("count", [2, 4])
def test_a_frame_with_more_or_fewer_events_than_it_says_is_damage(
    constraints: Constraints, count: int, tmp_path: Path
) -> None:
    """The indices of later events would be wrong."""
    session = session_with(constraints)
    first, body = session.more(2), session.more(3).body
    written_in(tmp_path, [session.opening(), first, PendingFrame(FrameKind.EVENTS, 1, 2, count, body)])
    begin = 0 if constraints is not LIMITS else 2
    assert reason(tmp_path) == f"the frame of events {begin} to {1 + count} holds others"


def test_a_session_without_its_first_segment_is_quarantined(tmp_path: Path) -> None:
    """Neither its description nor its events are known."""
    session = session_with(Constraints())
    in_segments(tmp_path, [session.opening(), session.more(2)], [session.decide()])
    last_segment(tmp_path, 1).unlink()
    found = recovered(tmp_path).quarantined["number 1"]
    assert found.reason == "its first segment is missing, and with it what the session is"
    assert (found.number, found.first_segment, found.last_segment, found.is_damaged, found.is_due) == (
        1,
        2,
        2,
        True,
        False,
    )


def test_a_part_without_its_first_segment_is_quarantined(tmp_path: Path) -> None:
    """A ROTATE frame describes the session, but the part before it is in no bundle."""
    session = session_with(Constraints())
    in_segments(tmp_path, [session.opening(), session.more(2)], [session.decide(), session.rotate(1)])
    last_segment(tmp_path, 1).unlink()
    assert recovered(tmp_path).reasons["s1"] == (
        "its first segment is missing, and with it events that were in no bundle yet"
    )


def test_a_quarantined_session_needs_the_segments_of_its_frames_and_its_damage(tmp_path: Path) -> None:
    """It needs all segments from the oldest to the newest."""
    session = session_with(Constraints())
    in_segments(tmp_path, [session.opening()], [session.more(2)], [closing(1, 0)], [opening(2)])
    found = recovered(tmp_path).quarantined["s1"]
    assert (found.number, found.session, found.first_segment, found.last_segment) == (1, "s1", 1, 3)


def test_a_quarantined_session_needs_the_segment_of_a_damage_behind_its_frames(tmp_path: Path) -> None:
    """More of its frames may be in that segment."""
    session = session_with(Constraints())
    in_segments(tmp_path, [opening(9), session.opening()], [session.more(2)], [session.decide()], [opening(2)])
    flip(last_segment(tmp_path, 3), frames_of(last_segment(tmp_path, 3))[1][1] + 64)
    found = recovered(tmp_path).quarantined["s1"]
    assert (found.first_segment, found.last_segment) == (1, 3)


# --- the whole journal ---


def test_a_recovery_says_what_the_journal_holds(tmp_path: Path) -> None:
    """Sessions that are over are not included."""
    assert recovered(tmp_path) == Recovery()
    one, two = session_with(Constraints()), session_with(LIMITS, number=2)
    journal = journal_in(tmp_path, segment_bytes=1 << 16)
    journal.commit([one.opening(), two.opening(), one.more(3), two.more(4)])
    assert recovered(tmp_path).events == 7
    journal.commit([one.decide(), one.closing(), published(1, final=True)])
    journal.close()
    found = recovered(tmp_path)
    assert [session.number for session in found.sessions] == [2]
    assert (found.events, found.torn_bytes, found.sealed, found.next_session) == (4, 0, False, 3)
    assert (found.published_sequence, found.damage, found.reasons) == (41, [], {})
    path = last_segment(tmp_path, 1)
    with path.open("r+b") as file:
        file.seek(frames_of(path)[-1][1] + frames_of(path)[-1][0].size)
        file.write(b"x" * 24)
    assert recovered(tmp_path).torn_bytes == 24


def test_a_journal_is_sealed_if_it_was_closed_in_order_or_has_no_sessions(tmp_path: Path) -> None:
    """A first start is not a crash."""
    journal = journal_in(tmp_path)
    journal.seal()
    journal.close()
    assert recovered(tmp_path).sealed
    journal = journal_in(tmp_path)
    journal.commit([session_with(LIMITS).opening()])
    assert not recovered(tmp_path).sealed
    journal.seal()
    journal.close()
    assert recovered(tmp_path).sealed


def test_damage_that_concerns_no_session_is_returned(tmp_path: Path) -> None:
    """Damage of a quarantined session is not returned, nor that of one that was set aside."""
    two = session_with(LIMITS, number=2)
    written_in(
        tmp_path,
        [opening(1), two.opening()],
        [events(1, 0)],
        [two.more(1)],
        [PendingFrame(FrameKind.EVENTS, 0, 0, 1, b"nobody's")],
        [PendingFrame(FrameKind.ASIDE, 1, 0, 0, b"{}"), opening(3)],
    )
    path = last_segment(tmp_path, 1)
    for _, offset in frames_of(path)[3:6]:
        flip(path, offset + 64)
    found = recovered(tmp_path)
    assert set(found.reasons) == {"s2", "number 3"}
    assert [damage.sessions for damage in found.damage] == [[]]


def test_progress_is_reported_before_each_run_of_frames(tmp_path: Path) -> None:
    """It has the number of frames up to the end of the run, and of all frames to be read."""
    one, two = session_with(Constraints()), session_with(LIMITS, number=2)
    three = session_with(Constraints(), number=3)
    in_segments(
        tmp_path,
        [one.opening(), one.more(1), one.more(1), two.opening(), three.opening(), three.more(1)],
        [one.more(1), two.more(1), three.decide(), three.closing()],
        [PendingFrame(FrameKind.PUBLISHED, 3, 1, 1, b"{}"), PendingFrame(FrameKind.ASIDE, 9, 0, 0, b"{}")],
    )
    told: list[tuple[int, int]] = []
    recover(tmp_path, look(tmp_path), RealStorage(), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 4), (3, 4), (4, 4)]


def test_a_journal_that_was_recovered_is_unchanged(tmp_path: Path) -> None:
    """A second recovery finds the same."""
    session = session_with(LIMITS)
    written_in(tmp_path, [session.opening(), session.more(5)], [session.decide(4)])
    before = last_segment(tmp_path, 1).read_bytes()
    assert the_session(tmp_path).undecided == the_session(tmp_path).undecided == session.events[4:]
    assert last_segment(tmp_path, 1).read_bytes() == before


def test_a_refusal_in_a_session_without_a_contract_is_damage(tmp_path: Path) -> None:
    """Without an adapter, no event can be refused."""
    for number, constraints in enumerate((LIMITS, Constraints())):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        session = session_with(constraints)
        rows = DecisionRows()
        rows.add_refusal(Refusal("code", "message"))
        written_in(
            directory,
            [session.opening(), session.more(1)],
            [PendingFrame(FrameKind.DECISIONS, 1, 0, 1, rows.encode())],
        )
        assert reason(directory) == "the decision recorded for event 's1-0' is not the one it leads to"
