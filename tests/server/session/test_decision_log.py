"""The decision log: the content of frames, the decisions kept for a client that follows, and those shown to a tap."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.server.looks import DESCRIPTION
from tests.server.session.test_adapters import add, daemon_with

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import Refusal
from ergo_capture.journal.frame import FrameKind, Position
from ergo_capture.journal.payloads import Interruption, RefusedEvent
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.server.session import decision_log
from ergo_capture.server.session.decision_log import JournalDecisionLog

DEADLINE = EventTime(7, 0)
#: The frames of each log that were durable: position, first index, count.
Durable = list[tuple[Position, int, int]]


class Log(JournalDecisionLog):
    """The log of session 3, which has five decisions already; it keeps its reports."""

    def __init__(self) -> None:
        description = msgspec.structs.replace(DESCRIPTION, constraints=Constraints(deadline=DEADLINE))
        initial = replace(RecoveredSession.new(3, description, 1), accepted=9, decided=5, refused=1)
        self.durable: Durable = []
        self.failures: list[ErgoCaptureError] = []
        self.counts: Counter[RunTermination] = Counter()
        self.refusals: list[RefusedEvent] = []
        super().__init__(
            initial,
            lambda *frame: self.durable.append(frame),
            self.failures.append,
            lambda termination, count: self.counts.update({termination: count}),
            self.refusals.append,
        )

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether any decision is not durable, and whether all are in frames."""
        return self.waiting, self.is_framed

    def commit(self) -> tuple[int, int]:
        """Make one frame durable; return its first index and its count."""
        frame = self.to_frame()
        assert frame is not None
        assert (frame.kind, frame.session) == (FrameKind.DECISIONS, 3)
        self.on_durable(Position(1, 0))
        return frame.first, frame.count


def events(*names: str) -> list[ExternalEvent]:
    """Return events of these ids."""
    return [ExternalEvent.mechanical(name, ExternalEventKind.Command) for name in names]


def decision(
    name: str, termination: RunTermination | None = RunTermination.Completed, **fields: Any
) -> DecisionLogEntry:
    """Return the decision on an event."""
    (event,) = events(name)
    kind = Decision.Defer if termination is None else Decision.Invoke
    return DecisionLogEntry("g", name, event, kind, None, 9, DEADLINE, termination, 0, **fields)


def test_a_frame_begins_where_the_one_before_ended() -> None:
    """It begins at the first decision that the journal does not hold; afterwards nothing waits."""
    log = Log()
    assert log.state == (False, True)
    assert log.to_frame() is None
    log.log(decision("a"))
    log.log_plain(events("b", "c"), 6)
    assert log.state == (True, False)
    assert log.logged == 8
    assert log.commit() == (5, 3)
    assert log.state == (False, True)
    log.refuse("d", Refusal("bad", "too large"))
    assert log.state == (True, False)
    assert log.commit() == (8, 1)
    assert log.durable == [(Position(1, 0), 5, 3), (Position(1, 0), 8, 1)]


def test_a_frame_that_a_full_disk_refused_is_written_again_before_what_was_logged_since() -> None:
    """The journal holds the decisions in order."""
    log = Log()
    log.log(decision("a"))
    first = log.to_frame()
    assert log.state == (True, True)
    log.log(decision("b"))
    assert log.state == (True, False)
    assert log.to_frame() is first
    assert log.state == (True, False)
    assert [log.commit(), log.commit()] == [(5, 1), (6, 1)]


def test_episodes_are_counted_by_how_they_ended() -> None:
    """A deferral is no episode."""
    log = Log()
    log.log(decision("a"))
    log.log(decision("b", RunTermination.TimedOut))
    log.log(decision("c", None))
    log.log_plain(events("d", "e"), 9)
    assert log.counts == {RunTermination.Completed: 3, RunTermination.TimedOut: 1}


def test_a_refused_event_is_reported_with_its_index_in_the_session() -> None:
    """It is also kept among the last ones, which a client hears again after a resume."""
    log = Log()
    log.log(decision("a"))
    log.refuse("b", Refusal("bad", "too large"))
    expected = RefusedEvent(6, "b", "bad", "too large")
    assert log.refusals == list(log.last_refused) == [expected]
    assert (log.refused, log.logged) == (2, 7)


def test_effects_that_fill_a_frame_are_divided_into_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame with effects up to the bound takes no further decision; the end of the run is in the last frame."""
    monkeypatch.setattr(decision_log, "_FULL_FRAME_BYTES", 100)
    log = Log()
    log.log(decision("a", interruption="x" * 60))
    assert log.waiting_bytes == 62
    log.log(decision("b", interruption="x" * 36))
    assert log.waiting_bytes == 100
    assert log.to_frame() is not None
    log.log(decision("c", interruption="x" * 200))
    log.end_run(Interruption(reason="r"))
    assert log.waiting
    assert [log.commit(), log.commit()] == [(5, 2), (7, 1)]
    assert not log.waiting


def test_the_end_of_a_run_goes_with_the_decision_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the same frame, even a full one: a frame with the end alone could be lost by itself."""
    monkeypatch.setattr(decision_log, "_FULL_FRAME_BYTES", 100)
    full = Log()
    full.log(decision("a", interruption="x" * 200))
    full.end_run(Interruption(reason="why"))
    frame = full.to_frame()
    assert frame is not None
    assert frame.count == 1
    assert b'"why"' in bytes(frame.body)
    full.on_durable(Position(1, 0))
    assert not full.waiting
    behind = Log()
    behind.log(decision("a", interruption="x" * 200))
    behind.log(decision("b"))
    behind.end_run(Interruption(reason="why"))
    bodies = []
    while (frame := behind.to_frame()) is not None:
        bodies.append(bytes(frame.body))
        behind.on_durable(Position(1, 0))
    assert [b'"why"' in body for body in bodies] == [False, True]


def test_an_end_before_any_decision_has_a_frame_of_its_own() -> None:
    """A run can be interrupted by the first episode after a restart."""
    log = Log()
    log.end_run(Interruption(reason="why"))
    assert log.state == (True, False)
    assert log.commit() == (5, 0)
    assert log.state == (False, True)


def test_the_bytes_of_a_frame_that_is_written_wait_too() -> None:
    """They wait until the frame is durable."""
    log = Log()
    log.log(decision("a", interruption="x" * 50))
    frame = log.to_frame()
    assert frame is not None
    assert log.waiting_bytes == len(frame.body) > 52
    log.log(decision("b", interruption="x" * 8))
    assert log.waiting_bytes == len(frame.body) + 10
    log.on_durable(Position(1, 0))
    assert log.waiting_bytes == 10


def test_a_failure_of_the_journal_is_passed_on() -> None:
    """The session fails with it."""
    log, error = Log(), ErgoCaptureError("the disk is gone")
    log.on_refused(error)
    assert log.failures == [error]


def test_decisions_that_are_followed_are_taken_once_they_are_durable() -> None:
    """They are in order, with None for a refused event."""
    log = Log()
    followed = [log.is_followed]
    assert log.follow(on=True) == 5
    followed.append(log.is_followed)
    first = decision("a")
    log.log(first)
    log.refuse("b", Refusal("bad", "too large"))
    assert (log.kept, log.untaken, log.take_followed()) == (2, 0, [])
    log.commit()
    log.log_plain(events("c"), 9)
    assert (log.kept, log.untaken) == (3, 2)
    assert log.take_followed() == [first, None]
    log.commit()
    (last,) = log.take_followed()
    assert last == decision("c")
    assert (log.kept, log.untaken) == (0, 0)
    assert log.follow(on=False) == 8
    assert [*followed, log.is_followed] == [False, True, False]
    log.log(first)
    assert log.kept == 0


def test_a_client_that_follows_again_gets_what_is_not_durable() -> None:
    """Those not taken before are durable, and the client can find them in the bundle."""
    log = Log()
    log.follow(on=True)
    log.log(decision("a"))
    log.commit()
    log.log(decision("b"))
    assert log.follow(on=True) == 6
    log.commit()
    (kept,) = log.take_followed()
    assert kept is not None
    assert kept.event_id == "b"
    log.log(decision("c"))
    log.commit()
    assert (log.follow(on=True), log.kept) == (8, 0)


def test_a_client_that_has_gone_is_kept_nothing_that_is_durable() -> None:
    """Decisions that are not durable are kept: the client may be back before they are."""
    log = Log()
    log.follow(on=True)
    log.log(decision("a"))
    log.commit()
    log.log(decision("b"))
    log.leave()
    assert log.kept == 1
    log.commit()
    assert log.kept == 0
    log.log(decision("c"))
    log.follow(on=True)
    log.commit()
    assert log.kept == 1


def test_a_listener_is_shown_as_many_decisions_as_it_asks_for() -> None:
    """The decisions have their index, and are as in the bundle."""
    log = Log()
    shown: list[tuple[int, int, list[DecisionLogEntry]]] = []
    log.listener = lambda first, count, entries: shown.append((first, count, list(entries(2))))
    log.log(decision("a"))
    log.log_plain(events("b", "c", "d"), 9)
    log.refuse("e", Refusal("bad", "too large"))
    assert shown == [
        (5, 1, [decision("a")]),
        (6, 3, [decision("b"), msgspec.structs.replace(decision("c"), episode_id=10)]),
    ]


def test_plain_decisions_are_listed_with_graph_deadline_and_episode() -> None:
    """This holds also if they are followed, and so logged one by one."""
    log = Log()
    log.follow(on=True)
    log.log_plain(events("a", "b"), 9)
    assert log.counts == {RunTermination.Completed: 2}
    log.commit()
    assert log.take_followed() == [decision("a"), msgspec.structs.replace(decision("b"), episode_id=10)]


async def test_decisions_that_do_not_fit_in_one_frame_become_durable_without_a_further_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them fills a frame here."""
    monkeypatch.setattr(decision_log, "_FULL_FRAME_BYTES", 1)
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say({"type": "events", "events": [add(name)["event"] for name in "abcd"]})
        await wire.until_ack(4, 4)
