"""The fates of accepted events, as recovery finds them: decided, refused, left over, or not decided yet."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from tests.journal.hosted import ADAPTER, CONTRACT, FAILED, WHEN, HostedLife, ack_of, sends, sets, write
from tests.journal.journals import look

from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Interruption, LeftOver, Rotation, encode_body
from ergo_capture.journal.recovery import RecoveredSession, Recovery, recover
from ergo_capture.storage import RealStorage

STORED = ("e1", "Command", 1, "full", {"n": 1})
LARGE = ("e2", "Command", 2, "full", {"n": 2})
MERGED = ("e3", "Command", 3, "full", {"note": "n comes from the store"})


def recovered(directory: Path) -> Recovery:
    """What a start finds."""
    return recover(directory, look(directory), RealStorage())


def session_in(directory: Path) -> RecoveredSession:
    """The one session of a journal."""
    recovery = recovered(directory)
    assert recovery.reasons == {}
    (session,) = recovery.sessions
    return session


def test_a_refused_event_is_refused_again(tmp_path: Path) -> None:
    """Its id stays used; it counts as decided and takes no episode id."""
    life = HostedLife(results={"e1": sets(n=11), "e3": sets(n=2)})
    write(tmp_path, [life.opened(), life.events(STORED, MERGED, LARGE)], [life.decisions()])
    session = session_in(tmp_path)
    assert life.refused == [(1, "e3")]
    assert (session.accepted, session.decided, session.refused) == (3, 3, 1)
    (refusal,) = session.refusals
    assert (refusal.index, refusal.event_id, refusal.code) == (1, "e3", "schema_violation")
    assert "11" in refusal.message
    assert session.ids == {"e1", "e2", "e3"}
    assert session.supervisor._next_episode == 2
    assert session.store == {"n": 11.0}


def test_a_decision_where_the_event_is_refused_is_damage(tmp_path: Path) -> None:
    """And the reverse."""
    life = HostedLife(results={"e1": sets(n=11)})
    rows = DecisionRows()
    rows.add_refusal(Refusal("schema_violation", "no reason"))
    write(
        tmp_path / "a",
        [life.opened(), life.events(STORED, MERGED)],
        [life.decisions(1)],
        [PendingFrame(FrameKind.DECISIONS, 1, 1, 1, b"[[0,1,1]]")],
    )
    other = HostedLife()
    write(
        tmp_path / "b",
        [other.opened(), other.events(STORED)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 1, rows.encode())],
    )
    for name, event_id in (("a", "e3"), ("b", "e1")):
        (reason,) = recovered(tmp_path / name).reasons.values()
        assert reason == f"the decision recorded for event '{event_id}' is not the one it leads to"


def test_undecided_events_wait_with_their_lines_and_the_store(tmp_path: Path) -> None:
    """Their payloads are derived when they are decided."""
    life = HostedLife(results={"e1": sets(n=3)})
    write(tmp_path, [life.opened(), life.events(STORED, LARGE, MERGED)], [life.decisions(1)])
    session = session_in(tmp_path)
    assert [event.event_id for event in session.undecided] == ["e2", "e3"]
    assert session.undecided_lines == b"".join(life.lines[1:])
    assert session.store == {"n": 3.0}


def test_an_outcome_without_a_decision_is_found_with_its_acks(tmp_path: Path) -> None:
    """Whatever ``in_doubt`` says, the episode is not run again."""
    run = sends("i1", "i2", n=4)
    life = HostedLife(results={"e1": FAILED})
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE)],
        [life.decisions(1), life.outcome(run)],
        [life.ack("i1")],
    )
    session = session_in(tmp_path)
    assert session.outcome is not None
    assert session.outcome.outcome.index == session.decided == 1
    assert session.outcome.outcome.to_result() == run
    assert [intent.intent_id for intent in session.outcome.outcome.intents] == ["i1", "i2"]
    assert session.outcome.acks == (ack_of("i1"),)
    assert session.store == {}


def test_an_outcome_whose_decision_is_there_is_over(tmp_path: Path) -> None:
    """Nothing of it is left to do."""
    run = sends("i1")
    life = HostedLife(results={"e1": run})
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE)],
        [life.outcome(run)],
        [life.ack("i1")],
        [life.decisions(1)],
    )
    session = session_in(tmp_path)
    assert (session.outcome, session.decided) == (None, 1)


def test_an_outcome_of_another_event_is_damage(tmp_path: Path) -> None:
    """One commit holds all decisions before it, then the outcome."""
    life = HostedLife()
    life.decided = 1
    outcome = life.outcome(sends("i1"))
    life.decided = 0
    write(tmp_path, [life.opened(), life.events(STORED, LARGE)], [outcome])
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "it has an outcome of event 1, and decisions before it are missing"


def test_events_behind_an_interruption_are_left_over(tmp_path: Path) -> None:
    """Before the session is closed, too: the row that ends the run is durable with the decision before it."""
    run = sends("i1")
    life = HostedLife(results={"e1": run}, unacknowledged=["i1"])
    write(tmp_path, [life.opened(), life.events(STORED, LARGE, MERGED)], [life.decisions()])
    session = session_in(tmp_path)
    assert session.interruption == Interruption(
        reason="egress_ack_timeout",
        message="ack timeout on channel 'out' for intent 'i1'",
        channel="out",
        intent_id="i1",
    )
    assert (session.accepted, session.decided) == (3, 1)
    assert session.left_over == LeftOver(1, "e2", 2)
    assert (session.undecided, session.undecided_lines) == ([], b"")


def test_a_closed_session_says_what_is_left_over(tmp_path: Path) -> None:
    """The CLOSE frame counts the events behind the decided ones."""
    life = HostedLife(results={"e1": sends("i1")}, unacknowledged=["i1"])
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE, MERGED)],
        [life.decisions()],
        [life.closed("interrupted")],
    )
    session = session_in(tmp_path)
    assert session.closing is not None
    assert session.interruption == session.closing.interruption == life.interruption
    assert session.left_over == LeftOver(1, "e2", 2)


def test_a_context_store_that_grows_beyond_its_bound_interrupts_the_run(tmp_path: Path) -> None:
    """Also where the kill came before anything but the decision was durable."""
    life = HostedLife(results={"e1": sets(n=3)}, contract=replace(CONTRACT, context_bytes=3))
    write(tmp_path, [life.opened(), life.events(STORED, LARGE)], [life.decisions(1)])
    session = session_in(tmp_path)
    assert session.interruption is not None
    assert session.interruption.reason == "context_full"
    assert session.left_over == LeftOver(1, "e2", 1)


def test_a_part_begins_with_the_store_of_its_rotation(tmp_path: Path) -> None:
    """Where the parts before are published, they are not read."""
    life = HostedLife(results={"e1": sets(n=7)})
    write(
        tmp_path,
        [life.opened(), life.events(STORED)],
        [life.decisions()],
        [life.rotated(), life.published(1, final=False)],
        [life.events(MERGED)],
        [life.decisions()],
    )
    session = session_in(tmp_path)
    assert (session.part, session.first, session.decided) == (2, 1, 2)
    assert session.rotation is not None
    assert session.rotation.store == session.store == {"n": 7.0}


def test_a_rotation_with_another_store_is_damage(tmp_path: Path) -> None:
    """The effects before it lead to one store only."""
    life = HostedLife(results={"e1": sets(n=7)})
    rotation = Rotation(1, False, WHEN, life.description, "e1", {"n": 8.0})
    write(
        tmp_path,
        [life.opened(), life.events(STORED)],
        [life.decisions()],
        [PendingFrame(FrameKind.ROTATE, 1, 1, 0, encode_body(rotation))],
    )
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "the context store at the end of part 1 is not what its effects wrote"


def test_the_adapter_is_found_in_the_journal_alone(tmp_path: Path) -> None:
    """The description holds the manifest's text."""
    life = HostedLife()
    write(tmp_path, [life.opened()])
    session = session_in(tmp_path)
    assert session.description.contract == life.contract
    assert session.description.adapter_provenance == ADAPTER.provenance
