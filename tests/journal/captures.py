"""Journals with real sessions: events as they are received, decisions as the supervisor takes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.journal.journals import journal_in, shrink

from ergo_capture.journal.decision_rows import DecisionRows
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Closing, Rotation, SessionDescription, encode_body
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.supervisor import Supervisor
from ergo_capture.kernel.time import EventTime

LIMITS = Constraints(max_per_window=6, rate_window=EventTime(2, 0), max_retries=1)


@dataclass
class Written:
    """A session as it is written to the journal."""

    number: int
    description: SessionDescription
    rows: DecisionRows = field(default_factory=DecisionRows)
    #: Every event acknowledged, and how many of them are decided.
    events: list[ExternalEvent] = field(default_factory=list)
    decided: int = 0
    supervisor: Supervisor | None = None

    @property
    def ids(self) -> list[str]:
        """Its event ids, in order."""
        return [event.event_id for event in self.events]

    def log(self, entry: DecisionLogEntry) -> None:
        """Take a decision of its supervisor."""
        self.rows.add(entry)

    def begin(self) -> None:
        """Decide with a new supervisor from now on."""
        outcomes = FaultRuntime(schedule={f"s{self.number}-3": [RunTermination.TimedOut, RunTermination.Aborted]})
        self.supervisor = Supervisor(self.description.graph, self.description.constraints, self, outcomes)

    def opening(self) -> PendingFrame:
        """Return its OPEN frame."""
        self.begin()
        return PendingFrame(FrameKind.OPEN, self.number, 0, 0, encode_body(self.description))

    def more(self, count: int) -> PendingFrame:
        """Return a frame of further events."""
        first, lines = len(self.events), b""
        for number in range(first, first + count):
            kind = "Pump" if number % 4 == 3 else "Command"
            event = {"event_id": f"s{self.number}-{number}", "kind": kind, "at": {"secs": number // 4, "nanos": 0}}
            event["payload"] = {"n": number, "pad": "é" * 20}
            lines += json.dumps({"type": "event", "event": event}, ensure_ascii=False).encode() + b"\n"
        self.events += read_body(lines)
        return PendingFrame(FrameKind.EVENTS, self.number, first, count, lines)

    def decide(self, end: int | None = None) -> PendingFrame:
        """Return a frame of the decisions about all events so far, or those before ``end``."""
        first, end = self.decided, len(self.events) if end is None else end
        self.rows = DecisionRows()
        assert self.supervisor is not None
        for event in self.events[first:end]:
            self.supervisor.drive(event)
        self.decided = end
        return PendingFrame(FrameKind.DECISIONS, self.number, first, end - first, self.rows.encode())

    def rotate(self, part: int) -> PendingFrame:
        """Return the frame that ends a part after the decided events."""
        self.begin()
        last = self.events[self.decided - 1].event_id
        rotation = Rotation(part, False, "2026-01-01T00:00:00Z", self.description, last)
        return PendingFrame(FrameKind.ROTATE, self.number, self.decided, 0, encode_body(rotation))

    def closing(self) -> PendingFrame:
        """Return the frame that ends it."""
        body = encode_body(Closing("complete", "2026-01-01T00:00:00Z"))
        return PendingFrame(FrameKind.CLOSE, self.number, len(self.events), 0, body)


def a_session(number: int) -> Written:
    """Return a session of which nothing is written yet."""
    return Written(
        number,
        SessionDescription(
            session=f"s{number}",
            graph="g",
            constraints=LIMITS,
            adapter_provenance="none",
            runtime_provenance="rpv1:x",
            engine="fixed",
            labels={"n": str(number)},
            peer=None,
            opened_at="2026-01-01T00:00:00Z",
            program="test 1",
        ),
    )


def write_sessions(
    directory: Path,
    *,
    sessions: int = 2,
    batches: int = 12,
    events: int = 5,
    rotate_after: int | None = None,
    close: bool = True,
    segment_bytes: int = 8192,
) -> dict[str, Written]:
    """Write sessions side by side: an events frame of each in every batch, its decisions one batch later."""
    directory.mkdir(parents=True, exist_ok=True)
    journal = journal_in(directory, segment_bytes=segment_bytes)
    written = [a_session(number) for number in range(1, sessions + 1)]
    journal.commit([session.opening() for session in written])
    for batch in range(batches):
        frames = [session.decide() for session in written] if batch else []
        if rotate_after == batch:
            frames += [session.rotate(1) for session in written]
        journal.commit([*frames, *(session.more(events) for session in written)])
    journal.commit([session.decide() for session in written])
    if close:
        journal.commit([session.closing() for session in written])
    journal.close()
    for name in [path.name for path in directory.glob("*.journal")]:
        shrink(directory / name)
    return {session.description.session: session for session in written}
