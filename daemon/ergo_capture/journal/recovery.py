"""Brings sessions back from a journal: recovery is replay.

Rules:

1. A session whose last bundle is durable is over. One that was closed but not published is published.
2. Any other session goes on where it was. Its events are fed through the same Supervisor as ever, with the
   recorded outcomes, and every decision must come out as it was recorded: a difference is damage.
3. Events that were accepted but not decided are decided next. The first of them are *in doubt*: their episodes
   may have run. What to do about them is ``session.in_doubt``; how many they are, ``server/session/episodes.py``.
4. A damaged session is quarantined with a sentence: not served, not published, not deleted.
5. Nothing is written here, so running it twice changes nothing.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionOutcome, read_decisions
from ergo_capture.journal.frame import Position
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import (
    Closing,
    Rotation,
    SessionDescription,
    read_closing,
    read_description,
    read_publication,
    read_rotation,
)
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import ScanReport, SessionFrames
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.storage import Storage


@dataclass(slots=True)
class PendingPublication:
    """A part that ended and whose bundle is not known to be durable."""

    part: int
    first: int
    count: int
    ended: str
    forced: bool
    event_frames: array[int]
    decision_frames: array[int]
    segment: int


@dataclass(slots=True)
class RecoveredSession:
    """A session as the journal has it."""

    number: int
    description: SessionDescription
    #: How it was closed, if it was.
    closing: Closing | None
    #: The part it is in, from 1, and the index of that part's first event.
    part: int
    first: int
    #: The oldest segment with a frame of it, and the oldest that its part needs once those before it are in bundles.
    segment: int
    part_segment: int
    ids: set[str]
    last_event_id: str | None
    accepted: int
    decided: int
    event_frames: array[int]
    decision_frames: array[int]
    event_bytes: int
    supervisor: Supervisor
    #: Attempts that the engine was asked for in this part, by event id, in order, for an engine that counts
    #: them; None for any other.
    attempts: list[tuple[str, int]] | None
    #: Accepted, not decided: what is to be decided next, in order.
    undecided: list[ExternalEvent]
    #: Parts before this one whose bundles are still to be published.
    unpublished: list[PendingPublication]


@dataclass(slots=True)
class Recovery:
    """All that a start has to take up again."""

    sessions: list[RecoveredSession] = field(default_factory=list)
    #: Sessions that are damaged, or whose graph is gone: id (or ``number N`` where that is lost) and what is wrong.
    quarantined: dict[str, str] = field(default_factory=dict)
    #: The oldest segment that a quarantined session needs.
    quarantine_segment: int | None = None
    events: int = 0
    torn_bytes: int = 0
    sealed: bool = True
    next_session: int = 1

    def quarantine(self, session: str, reason: str, segment: int) -> None:
        """Set a session aside, which needs the journal from ``segment`` on."""
        self.quarantined[session] = reason
        known = self.quarantine_segment
        self.quarantine_segment = segment if known is None else min(known, segment)


class _Progress:
    """How far the replay is, in frames of events."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._tell = tell

    def step(self) -> None:
        """One more frame."""
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._total)

    def __repr__(self) -> str:
        return f"<_Progress {self._done} of {self._total} frames>"


class _Unreadable(ErgoCaptureError):
    """What is in the session's frames is not what a daemon writes."""


def recover(
    directory: Path,
    scan: ScanReport,
    storage: Storage,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recovery:
    """Rebuild every session that is not over.

    ``on_progress`` is told often of how many of how many frames of events are replayed.

    Raises:
        StorageError: a segment cannot be read.
    """
    recovery = Recovery(
        torn_bytes=0 if scan.torn is None else scan.torn.length,
        sealed=scan.sealed or not scan.sessions,
        next_session=scan.next_session,
    )
    alive = [frames for frames in scan.sessions.values() if not frames.done]
    progress = _Progress(sum(len(frames.events) for frames in alive), on_progress)
    for frames in alive:
        try:
            if frames.damage is not None:
                raise _Unreadable(frames.damage)
            session = _rebuild(directory, frames, storage, progress)
        except (_Unreadable, ValueError) as error:
            _quarantine(recovery, directory, scan, frames, storage, str(error))
            continue
        recovery.events += session.accepted - session.first
        recovery.sessions.append(session)
    return recovery


def _quarantine(
    recovery: Recovery, directory: Path, scan: ScanReport, frames: SessionFrames, storage: Storage, reason: str
) -> None:
    name = f"number {frames.number}"
    if frames.open is not None:
        # Why suppressed: a name that is lost with the frame that bore it keeps nobody from being told of the damage.
        with suppress(ErgoCaptureError, ValueError):
            (frame,) = read_frames(directory, [frames.open], storage)
            name = read_description(frame.body).session
    # Why also where it is damaged: there may be older frames of it there, or what is left of them.
    concerned = [damage.segment for damage in scan.damage if frames.number in damage.sessions]
    recovery.quarantine(name, reason, min((frames.first_segment, *concerned)))


def _rebuild(directory: Path, frames: SessionFrames, storage: Storage, progress: _Progress) -> RecoveredSession:
    def bodies(positions: list[Position]) -> list[bytes]:
        return [frame.body for frame in read_frames(directory, positions, storage)]

    rotations = [
        (read_rotation(frame.body), frame.header.first) for frame in read_frames(directory, frames.rotations, storage)
    ]
    published = {read_publication(body).part for body in bodies(frames.published)}
    closing = read_closing(bodies([frames.close])[0]) if frames.close is not None else None
    if frames.open is not None:
        description = read_description(bodies([frames.open])[0])
    elif rotations:
        description = rotations[0][0].description
    else:
        raise _Unreadable("its first segment is missing, and with it what the session is")
    session = _start(frames, description, closing, rotations, published)
    _replay(directory, session, frames, rotations, storage, progress)
    for (rotation, _), position in zip(rotations, frames.rotations, strict=True):
        if rotation.part + 1 == session.part:
            # Why not only the events': where the session's first frame is gone, this one says what it is.
            needed = [position, *map(Position.unpack, session.event_frames[:1])]
            session.part_segment = min(where.segment for where in needed)
    return session


def _start(
    frames: SessionFrames,
    description: SessionDescription,
    closing: Closing | None,
    rotations: list[tuple[Rotation, int]],
    published: set[int],
) -> RecoveredSession:
    segment = frames.first_segment
    session = RecoveredSession(
        number=frames.number,
        description=description,
        closing=closing,
        part=1,
        first=0,
        segment=segment,
        part_segment=segment,
        ids=set(),
        last_event_id=None,
        accepted=0,
        decided=0,
        event_frames=array("Q"),
        decision_frames=array("Q"),
        event_bytes=0,
        supervisor=_supervisor(description, _Silent()),
        attempts=[] if description.engine == "scripted" else None,
        undecided=[],
        unpublished=[],
    )
    # Parts whose bundles are durable need not be read again, as long as a later part begins after them.
    for rotation, first in rotations:
        if rotation.part not in published:
            break
        session.part, session.first = rotation.part + 1, first
        session.accepted = session.decided = first
        session.last_event_id = rotation.last_event_id
    if frames.open is None and session.first == 0:
        raise _Unreadable("its first segment is missing, and with it events that were in no bundle yet")
    return session


class _Silent:
    """A decision log for decisions that are durable already; keeps the last one, to compare."""

    def __init__(self) -> None:
        self.entry: DecisionLogEntry | None = None

    def log(self, entry: DecisionLogEntry) -> None:
        self.entry = entry


def _supervisor(description: SessionDescription, log: _Silent) -> Supervisor:
    return Supervisor(description.graph, description.constraints, log)


def _replay(
    directory: Path,
    session: RecoveredSession,
    frames: SessionFrames,
    rotations: list[tuple[Rotation, int]],
    storage: Storage,
    progress: _Progress,
) -> None:
    outcomes = _outcomes(directory, session, frames, storage)
    boundaries = deque((rotation, first) for rotation, first in rotations if first > session.first)
    log = _Silent()
    session.supervisor = _supervisor(session.description, log)
    start = session.first
    for packed, frame in zip(
        frames.events, read_frames(directory, map(Position.unpack, frames.events), storage), strict=True
    ):
        progress.step()
        first, count = frame.header.first, frame.header.count
        if first + count <= start:
            continue
        if boundaries and first >= boundaries[0][1]:
            _end_part(session, *boundaries.popleft())
            session.supervisor = _supervisor(session.description, log)
        session.event_frames.append(packed)
        session.event_bytes += len(frame.body)
        for event in read_body(frame.body):
            session.ids.add(event.event_id)
            session.accepted += 1
            session.last_event_id = event.event_id
            outcome = next(outcomes, None)
            if outcome is None:
                session.undecided.append(event)
            else:
                _decide_again(session, log, event, outcome)
        if session.accepted != first + count:
            raise _Unreadable(f"the frame of events {first} to {first + count - 1} holds others")
    if next(outcomes, None) is not None:
        raise _Unreadable("it has decisions about events that are missing")
    if boundaries:
        _end_part(session, *boundaries.popleft())
        session.supervisor = _supervisor(session.description, log)


def _outcomes(
    directory: Path, session: RecoveredSession, frames: SessionFrames, storage: Storage
) -> Iterator[DecisionOutcome]:
    for packed, frame in zip(
        frames.decisions, read_frames(directory, map(Position.unpack, frames.decisions), storage), strict=True
    ):
        if frame.header.first + frame.header.count <= session.first:
            continue
        session.decision_frames.append(packed)
        yield from read_decisions(frame.body)


def _decide_again(session: RecoveredSession, log: _Silent, event: ExternalEvent, outcome: DecisionOutcome) -> None:
    step = session.supervisor.offer(event)
    deadline = session.description.constraints.deadline
    recorded = outcome.to_record(event.event_id, deadline)
    if isinstance(step, Run):
        if outcome.termination is None or outcome.decision is not Decision.Invoke:
            raise _Unreadable(f"the decision recorded for event {event.event_id!r} is not the one it leads to")
        result = RunResult(
            outcome.termination, tuple(e.effect for e in outcome.effects), outcome.intent_acks, outcome.interruption
        )
        session.supervisor.settle(step, outcome.termination, outcome.retry_count, result)
        if session.attempts is not None:
            session.attempts.append((step.origin.event_id, outcome.retry_count + 1))
    assert log.entry is not None
    if log.entry.to_record() != recorded:
        raise _Unreadable(f"the decision recorded for event {event.event_id!r} is not the one it leads to")
    session.decided += 1


def _end_part(session: RecoveredSession, rotation: Rotation, first: int) -> None:
    """The part that was being read ended here, and its bundle is still to be published."""
    session.unpublished.append(
        PendingPublication(
            rotation.part,
            session.first,
            first - session.first,
            "rotated",
            rotation.forced,
            session.event_frames,
            session.decision_frames,
            session.segment,
        )
    )
    session.part, session.first = rotation.part + 1, first
    session.event_frames, session.decision_frames = array("Q"), array("Q")
    session.event_bytes = 0
