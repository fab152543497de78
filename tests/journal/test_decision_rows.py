"""Rows of decisions: what is written for each decision, how much it takes, and that it is read back as it was."""

from __future__ import annotations

import msgspec
import pytest
from tests.journal.hosted import ack_of, sends, sets

from ergo_capture.journal.decision_rows import (
    DecisionOutcome,
    DecisionRows,
    EndOfRun,
    PlainRun,
    Refusal,
    end_of_run,
    expand_run,
    join_rows,
    read_decisions,
    read_rows,
    said_bytes,
)
from ergo_capture.journal.payloads import Interruption
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import Decision, ErrKind, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedActionEffect, EpisodeInvocationRecord
from ergo_capture.kernel.time import EventTime

EVENT = ExternalEvent("e", ExternalEventKind.Command, EventTime(1, 0), b"", None)
REFUSAL = Refusal("schema_violation", "six!!!")
INTERRUPTION = Interruption(reason="driver_io", message="it ended")
EFFECTS = tuple(CapturedActionEffect.of(effect) for effect in sends("i1", n=3).effects)


def entry(
    episode: int,
    termination: RunTermination | None = RunTermination.Completed,
    retry_count: int = 0,
    effects: tuple[CapturedActionEffect, ...] = (),
    acks: tuple[str, ...] = (),
    interruption: str | None = None,
    *,
    schedule_at: EventTime | None = None,
) -> DecisionLogEntry:
    """Return a decision; without a termination it is a deferral."""
    decision = Decision.Defer if termination is None else Decision.Invoke
    return DecisionLogEntry(
        "g",
        "e",
        EVENT,
        decision,
        schedule_at,
        episode,
        None,
        termination,
        retry_count,
        effects,
        tuple(map(ack_of, acks)),
        interruption,
    )


NOT_PLAIN = [
    pytest.param(entry(5, RunTermination.TimedOut), id="another termination"),
    pytest.param(entry(5, RunTermination.Failed(ErrKind.SemanticError)), id="a failure"),
    pytest.param(entry(5, retry_count=2), id="retries"),
    pytest.param(entry(5, effects=EFFECTS), id="effects"),
    pytest.param(entry(5, acks=("i1",)), id="acks"),
    pytest.param(entry(5, interruption="driver_io"), id="an interruption"),
    pytest.param(entry(5, interruption=""), id="an interruption without a word"),
    pytest.param(entry(5, None, schedule_at=EventTime(7, 1)), id="a deferral"),
    pytest.param(entry(5, None), id="a deferral without a time"),
]


def outcome_of(entry: DecisionLogEntry) -> DecisionOutcome:
    """Return the decision as it is read from a row."""
    return DecisionOutcome(
        entry.decision,
        entry.schedule_at,
        entry.episode_id,
        entry.termination,
        entry.retry_count,
        entry.effects,
        entry.intent_acks,
        entry.interruption,
    )


def test_plain_decisions_of_consecutive_episodes_are_one_row() -> None:
    """One by one or several at once."""
    rows = DecisionRows()
    rows.add(entry(3))
    rows.add(entry(4))
    rows.add_plain(5, 2)
    rows.add(entry(7))
    rows.add_plain(9, 4)
    rows.add_plain(13, 1)
    rows.add(entry(20))
    assert rows.encode() == b"[[0,3,5],[0,9,5],[0,20,1]]"
    assert (rows.count, rows.bytes, rows.is_end) == (11, 0, False)
    episodes = [outcome.episode_id for outcome in read_decisions(rows.encode()) if isinstance(outcome, DecisionOutcome)]
    assert episodes == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 20]


@pytest.mark.parametrize("other", NOT_PLAIN)
def test_a_decision_that_is_not_plain_has_its_own_row(other: DecisionLogEntry) -> None:
    """It is read back as it was taken, and ends the run of plain ones."""
    rows = DecisionRows()
    for each in (entry(4), other, entry(5)):
        rows.add(each)
    assert rows.count == 3
    first, second, third = read_rows(rows.encode())
    assert (first, second, third) == (PlainRun(4, 1), outcome_of(other), PlainRun(5, 1))


@pytest.mark.parametrize("between", ["refusal", "end"])
def test_nothing_is_joined_over_a_refusal_or_the_end_of_a_run(between: str) -> None:
    """Rows are in the order of the events."""
    rows = DecisionRows()
    rows.add(entry(4))
    if between == "refusal":
        rows.add_refusal(REFUSAL)
    else:
        rows.add_end(INTERRUPTION)
    rows.add_plain(5, 1)
    row = REFUSAL if between == "refusal" else EndOfRun(INTERRUPTION)
    assert list(read_rows(rows.encode())) == [PlainRun(4, 1), row, PlainRun(5, 1)]
    assert (rows.count, rows.is_end) == ((3, False) if between == "refusal" else (2, True))


def test_rows_have_the_documented_form() -> None:
    """The form is the one in the module's docstring."""
    rows = DecisionRows()
    for each in (entry(1, None, schedule_at=EventTime(7, 1)), entry(2, RunTermination.TimedOut, 3, interruption="x")):
        rows.add(each)
    rows.add_refusal(REFUSAL)
    rows.add_end(INTERRUPTION)
    assert rows.encode() == (
        b'[[1,1,{"secs":7,"nanos":1}],[2,2,"TimedOut",3,[],[],"x"],[3,"schema_violation","six!!!"],'
        b'[4,{"reason":"driver_io","message":"it ended"}]]'
    )


def test_a_decision_says_how_many_bytes_it_adds() -> None:
    """Its effects, acknowledgements, interruption and message; the daemon bounds a frame by them."""
    effect = sum(len(msgspec.json.encode(each.effect)) for each in EFFECTS)
    acks = len(msgspec.json.encode([ack_of("i1"), ack_of("i2")]))
    rows = DecisionRows()
    rows.add(entry(1, effects=EFFECTS))
    assert rows.bytes == effect
    rows.add(entry(2, acks=("i1", "i2")))
    assert rows.bytes == effect + acks
    rows.add(entry(3, interruption="driver_io"))
    assert rows.bytes == effect + acks + len('"driver_io"')
    rows.add_refusal(REFUSAL)
    assert rows.bytes == effect + acks + len('"driver_io"') + len("six!!!")
    result = sends("i1", n=3)
    assert said_bytes(result) == effect
    whole = RunResult(RunTermination.Completed, result.effects, (ack_of("i1"), ack_of("i2")), "driver_io")
    assert said_bytes(whole) == effect + acks + len('"driver_io"')
    assert said_bytes(RunResult(RunTermination.Completed)) == 0
    assert said_bytes(sets(n=1)) < effect


def test_a_run_is_expanded_to_its_decisions() -> None:
    """Completed at the first attempt, one for each episode."""
    found = list(expand_run(PlainRun(7, 3)))
    assert found == [outcome_of(entry(episode)) for episode in (7, 8, 9)]


def test_a_record_has_the_event_and_the_deadline_that_the_row_lacks() -> None:
    """Everything else is the row's."""
    deadline = EventTime(9, 0)
    deferral = outcome_of(entry(4, None, schedule_at=EventTime(7, 1))).to_record("e4", deadline)
    assert deferral == EpisodeInvocationRecord(
        "e4", Decision.Defer, EventTime(7, 1), 4, deadline, None, 0, (), (), None
    )
    taken = outcome_of(entry(5, RunTermination.TimedOut, 2, EFFECTS, ("i1",), "x")).to_record("e5", None)
    assert taken == EpisodeInvocationRecord(
        "e5", Decision.Invoke, None, 5, None, RunTermination.TimedOut, 2, EFFECTS, (ack_of("i1"),), "x"
    )


def test_joined_bodies_have_the_rows_of_all() -> None:
    """The rows are in order."""
    assert join_rows([b"[[0,1,1]]"]) == b"[[0,1,1]]"
    assert join_rows([b"[[0,1,1]]", b"[[0,2,1],[0,4,2]]", b"[[1,3,null]]"]) == (b"[[0,1,1],[0,2,1],[0,4,2],[1,3,null]]")


def test_decisions_are_read_without_the_end_of_the_run() -> None:
    """It belongs to no event."""
    rows = DecisionRows()
    rows.add(entry(4))
    rows.add_refusal(REFUSAL)
    assert end_of_run(rows.encode()) is None
    rows.add_end(INTERRUPTION)
    assert list(read_decisions(rows.encode())) == [outcome_of(entry(4)), REFUSAL]
    assert end_of_run(rows.encode()) == INTERRUPTION


def test_text_like_an_end_of_run_is_none() -> None:
    """A refusal's message may hold anything."""
    rows = DecisionRows()
    rows.add_refusal(Refusal("c", "[4,"))
    assert end_of_run(rows.encode()) is None
