"""The state of a supervisor between events: its time, its episodes, and its deferred events."""

from __future__ import annotations

import pytest

from ergo_capture import Constraints, EventTime, ExternalEvent, ExternalEventKind, FaultRuntime, RunTermination
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.ports import DecisionLogEntry, MemoryDecisionLog, RunResult
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.kernel.time import U64_MAX

COMMAND, PUMP = ExternalEventKind.Command, ExternalEventKind.Pump


def event(secs: int, nanos: int = 0, payload: bytes = b"", kind: ExternalEventKind = COMMAND) -> ExternalEvent:
    """Return an event at a time."""
    return ExternalEvent(f"e{secs}.{nanos}", kind, EventTime(secs, nanos), payload)


class PlainLog(MemoryDecisionLog):
    """A log that takes runs of plain decisions and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[tuple[list[str], int]] = []

    def log_plain(self, events: list[EventLike], first_episode: int) -> None:
        """Keep the ids and the first episode."""
        self.plain.append(([each.event_id for each in events], first_episode))


def test_plain_decisions_are_logged_in_runs_around_a_pump() -> None:
    """Time never goes back, and episodes are counted on, also over several calls."""
    log = PlainLog()
    supervisor = Supervisor("g", Constraints(), log, FaultRuntime())
    supervisor.drive_all([event(5, 1), event(3, 9), event(5, 0)])
    assert (supervisor.now, log.plain) == (EventTime(5, 1), [(["e5.1", "e3.9", "e5.0"], 0)])
    supervisor.drive_all([event(5, 2), event(6, 0, kind=PUMP), event(5, 3), event(6, 1)])
    assert (supervisor.now, log.plain[1:]) == (EventTime(6, 1), [(["e5.2"], 3), (["e5.3", "e6.1"], 5)])
    assert [(entry.event_id, entry.episode_id, entry.decision) for entry in log.entries] == [
        ("e6.0", 4, Decision.Defer)
    ]
    supervisor.drive_all([event(1)])
    assert (supervisor.now, log.plain[3:]) == (EventTime(6, 1), [(["e1.0"], 7)])


def test_a_pump_at_the_start_or_end_leaves_no_empty_run() -> None:
    """Only the events beside it are logged."""
    log = PlainLog()
    Supervisor("g", Constraints(), log, FaultRuntime()).drive_all([event(1, kind=PUMP), event(2), event(3, kind=PUMP)])
    assert log.plain == [(["e2.0"], 1)]
    assert [entry.episode_id for entry in log.entries] == [0, 2]


@pytest.mark.parametrize(
    "limits",
    [
        Constraints(max_in_flight=1),
        Constraints(max_per_window=9, rate_window=EventTime(1, 0)),
        Constraints(deadline=EventTime(0, 0)),
    ],
)
def test_decisions_that_may_differ_are_logged_one_by_one(limits: Constraints) -> None:
    """Something is limited, or the deadline has passed before the start."""
    log = PlainLog()
    Supervisor("g", limits, log, FaultRuntime()).drive_all([event(1), event(2)])
    assert (len(log.entries), log.plain) == (2, [])


def test_a_deadline_that_is_left_changes_nothing() -> None:
    """A window without a count changes nothing either."""
    log = PlainLog()
    limits = Constraints(deadline=EventTime(0, 1), rate_window=EventTime(1, 0))
    Supervisor("g", limits, log, FaultRuntime()).drive_all([event(1), event(2)])
    assert (log.entries, log.plain) == ([], [(["e1.0", "e2.0"], 0)])


def test_events_are_taken_as_if_they_had_been_driven() -> None:
    """The supervisor's time and next episode are those after the events; nothing is logged."""
    log, taken = MemoryDecisionLog(), [event(5, 1), event(3, 9), event(5, 0)]
    supervisor = Supervisor("g", Constraints(), log, FaultRuntime())
    assert not supervisor.begin_all(taken, 1)
    assert supervisor.begin_all(taken, 0)
    assert not supervisor.begin_all([*taken, event(9, kind=PUMP)], 3)
    assert (supervisor.now, log.entries) == (EventTime(5, 1), [])
    assert supervisor.begin_all([event(5, 3)], 3)
    assert supervisor.drive(event(5, 2)).episode_id == 4
    assert supervisor.now == EventTime(5, 3)


@pytest.mark.parametrize(
    ("limits", "limited"),
    [
        (Constraints(), False),
        (Constraints(max_in_flight=1), False),
        (Constraints(max_in_flight=0), True),
        (Constraints(max_per_window=1), False),
        (Constraints(max_per_window=1, rate_window=EventTime(1, 0)), True),
    ],
)
def test_events_are_taken_only_where_none_may_be_deferred(limits: Constraints, limited: bool) -> None:
    """A limit of one in flight defers nothing, since each episode is over before the next."""
    assert Supervisor("g", limits, MemoryDecisionLog()).begin_all([event(1)], 0) is not limited


def test_episodes_end_at_the_largest_number() -> None:
    """All later episodes have that number."""
    supervisor = Supervisor("g", Constraints(), MemoryDecisionLog(), FaultRuntime())
    supervisor._next_episode = U64_MAX - 1
    assert not supervisor.begin_all([event(1)], U64_MAX - 1)
    assert [supervisor.drive(event(at)).episode_id for at in (1, 2, 3)] == [U64_MAX - 1, U64_MAX, U64_MAX]


@pytest.mark.parametrize(("left", "plain"), [(4, True), (3, False)])
def test_plain_decisions_end_before_the_largest_episode(left: int, plain: bool) -> None:
    """Otherwise each event is decided by itself."""
    log = PlainLog()
    supervisor = Supervisor("g", Constraints(), log, FaultRuntime())
    supervisor._next_episode = U64_MAX - left
    supervisor.drive_all([event(1), event(2), event(3)])
    assert (len(log.plain), len(log.entries)) == ((1, 0) if plain else (0, 3))


def test_a_mechanical_failure_is_tried_again_as_often_as_is_allowed() -> None:
    """Other failures are not retried."""
    supervisor = Supervisor("g", Constraints(max_retries=1), MemoryDecisionLog())
    assert supervisor.wants_retry(RunTermination.TimedOut, 0)
    assert not supervisor.wants_retry(RunTermination.TimedOut, 1)
    assert not supervisor.wants_retry(RunTermination.Aborted, 0)


def test_the_bytes_of_deferred_payloads_are_counted() -> None:
    """They count until a pump starts their episode."""
    supervisor = Supervisor("g", Constraints(max_in_flight=1), MemoryDecisionLog())
    running = supervisor.offer(event(1))
    assert isinstance(running, Run)
    supervisor.offer(event(2, payload=b'{"n":1}'))
    supervisor.offer(event(3, payload=b"{}"))
    assert (supervisor.deferred_count, supervisor.deferred_bytes) == (2, 9)
    deferred = supervisor.offer(event(4, kind=PUMP))
    assert isinstance(deferred, DecisionLogEntry)
    assert (supervisor.deferred_count, supervisor.deferred_bytes) == (2, 9)
    supervisor.detach()
    assert isinstance(supervisor.offer(event(5, kind=PUMP)), Run)
    assert (supervisor.deferred_count, supervisor.deferred_bytes) == (1, 7)


def test_a_supervisor_goes_on_with_another_log_and_engine() -> None:
    """The first log and engine are those of a recovery."""
    first, second = MemoryDecisionLog(), PlainLog()
    supervisor = Supervisor("g", Constraints(), first, None)
    supervisor.begin_all([event(1)], 0)
    supervisor.rebind(second, FaultRuntime())
    supervisor.on_event(event(2))
    supervisor.drive_all([event(3)])
    assert first.entries == []
    assert [entry.event_id for entry in second.entries] == ["e2.0"]
    assert second.plain == [(["e3.0"], 2)]


class Bare:
    """An event with only the fields that the supervisor reads."""

    event_id = "bare"
    kind = COMMAND
    at = EventTime(1, 0)


def test_an_event_without_a_payload_takes_no_bytes() -> None:
    """It is deferred like any other."""
    supervisor = Supervisor("g", Constraints(max_in_flight=0), MemoryDecisionLog())
    supervisor.offer(Bare())
    assert (supervisor.deferred_count, supervisor.deferred_bytes) == (1, 0)


@pytest.mark.parametrize("detached", [False, True])
def test_so_many_episodes_run_at_once_as_are_allowed(detached: bool) -> None:
    """One more is deferred, until one has ended or does not count any more."""
    supervisor = Supervisor("g", Constraints(max_in_flight=2), MemoryDecisionLog())
    runs = [supervisor.offer(event(at)) for at in (1, 2, 3)]
    assert [isinstance(run, Run) for run in runs] == [True, True, False]
    assert isinstance(runs[0], Run)
    if detached:
        supervisor.detach()
    else:
        supervisor.settle(runs[0], RunTermination.Completed, 0)
    assert isinstance(supervisor.offer(event(4)), Run)
    assert not isinstance(supervisor.offer(event(5)), Run)


class Failing:
    """An engine that fails and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def run(self, *arguments: object) -> RunResult | RunTermination:
        """Time out; the second time, give a reason too."""
        self.calls.append(arguments)
        return RunTermination.TimedOut if len(self.calls) == 1 else RunResult(RunTermination.TimedOut, interruption="x")


def test_an_engine_gets_the_event_at_each_attempt() -> None:
    """It also gets the graph and the deadline; the result of the last attempt counts."""
    engine, each = Failing(), event(1)
    supervisor = Supervisor("g", Constraints(max_retries=1, deadline=EventTime(9, 0)), MemoryDecisionLog(), engine)
    entry = supervisor.drive(each)
    assert engine.calls == [("g", "e1.0", each, EventTime(9, 0))] * 2
    assert (entry.termination, entry.retry_count, entry.interruption) == (RunTermination.TimedOut, 1, "x")
