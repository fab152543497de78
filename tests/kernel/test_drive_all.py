"""``drive_all`` decides as ``drive`` does for each event."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ergo_capture import Constraints, EventTime, ExternalEvent, ExternalEventKind, FaultRuntime, RunTermination
from ergo_capture.journal.decision_rows import DecisionOutcome, DecisionRows, read_decisions
from ergo_capture.journal.payloads import SessionDescription
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.ports import MemoryDecisionLog
from ergo_capture.kernel.supervisor import Supervisor
from ergo_capture.server.session.decision_log import JournalDecisionLog

events = st.lists(
    st.builds(
        lambda number, kind, secs, nanos: ExternalEvent(f"e{number}", kind, EventTime(secs, nanos)),
        st.integers(0, 999),
        st.sampled_from(ExternalEventKind),
        st.integers(0, 20),
        st.sampled_from([0, 1, 999_999_999]),
    ),
    max_size=60,
)
limits = st.builds(
    Constraints,
    st.sampled_from([None, None, 0, 1]),
    st.sampled_from([None, 0, 1, 3]),
    st.sampled_from([None, EventTime(0, 0), EventTime(3, 0)]),
    st.sampled_from([None, None, EventTime(0, 0), EventTime(1, 0)]),
    st.sampled_from([0, 2]),
)
endings = st.sampled_from([RunTermination.Completed, RunTermination.Completed, RunTermination.TimedOut])


@given(events, limits, endings, st.lists(st.integers(0, 60), max_size=4))
def test_drive_all_takes_the_decisions_of_drive(
    stream: list[ExternalEvent], constraints: Constraints, ending: RunTermination, cuts: list[int]
) -> None:
    """P11: whatever the limits, kinds, times and chunks; also through the journal's rows."""
    memory = MemoryDecisionLog()
    one_by_one = Supervisor("g", constraints, memory, FaultRuntime(ending))
    for event in stream:
        one_by_one.drive(event)
    log = JournalDecisionLog(RecoveredSession.new(1, described(constraints), 1), lambda *_: None, lambda _: None)
    at_once = Supervisor("g", constraints, log, FaultRuntime(ending))
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(bounds):
        at_once.drive_all(stream[start:end])
    assert log.logged == len(stream)
    assert (at_once.now, at_once.deferred_count) == (one_by_one.now, one_by_one.deferred_count)
    frame = log.to_frame()
    found = read_decisions(frame.body) if frame else ()
    outcomes = [outcome for outcome in found if isinstance(outcome, DecisionOutcome)]
    records = [o.to_record(e.event_id, constraints.deadline) for o, e in zip(outcomes, stream, strict=True)]
    assert records == memory.records()


def described(constraints: Constraints) -> SessionDescription:
    """Return the description of a session with these limits."""
    return SessionDescription(
        session="s",
        graph="g",
        constraints=constraints,
        adapter_provenance="none",
        runtime_provenance="rpv1:none",
        engine="fixed",
        labels={},
        peer=None,
        opened_at="",
        program="",
    )


def test_a_run_of_plain_decisions_is_one_row() -> None:
    """A million of them take some bytes, not some megabytes."""
    rows = DecisionRows()
    for start in range(0, 1_000_000, 1000):
        rows.add_plain(start, 1000)
    assert rows.count == 1_000_000
    assert rows.encode() == b"[[0,0,1000000]]"
