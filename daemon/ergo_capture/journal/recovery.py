"""Rebuild sessions from a journal by replaying them.

Rules:

1. A session whose last bundle is durable is over. A session that was closed and not published is returned, to be
   published.
2. Any other session continues where it was. Its events are fed through the same supervisor with the recorded outcomes,
   and every decision must be the recorded one: a difference is damage.
3. Events that were accepted and not decided are decided next. The first of them are *in doubt*: their episodes may have
   run. The setting ``session.in_doubt`` says how they are handled, ``server/session/episodes.py`` how many there are.
   If an OUTCOME frame holds the result of the first one, that is its decision.
4. Payloads are derived by the session's contract (``derivation.py``). An event that was refused must be refused again.
   After an interruption of the run nothing is decided: events accepted after it are left over.
5. A damaged session is quarantined with the reason: not served, not published, not deleted.
6. Nothing is written, so recovering twice changes nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import (
    DecisionOutcome,
    EndOfRun,
    PlainRun,
    Refusal,
    end_of_run,
    expand_run,
    join_rows,
    read_rows,
)
from ergo_capture.journal.derivation import Derivation, is_not_installed
from ergo_capture.journal.frame import Position
from ergo_capture.journal.lines import read_body, read_outlines, split_lines
from ergo_capture.journal.payloads import (
    SCRIPTED,
    Closing,
    Interruption,
    LeftOver,
    Loss,
    Publication,
    RefusedEvent,
    Rotation,
    SessionDescription,
)
from ergo_capture.journal.reader import FrameRun, read_runs
from ergo_capture.journal.scan_report import Damage, ScanReport, SessionFrames, Verdict
from ergo_capture.journal.session_frames import (
    PartEnd,
    PendingOutcome,
    SessionHistory,
    greatest_published,
    read_history,
)
from ergo_capture.kernel.events import EventLike, ExternalEvent
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, MemoryDecisionLog, RunResult
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.storage import Storage

#: How many of the last refusals are kept, to tell a client that resumes.
MOST_REFUSALS: Final = 1_000


@dataclass(slots=True)
class PendingPublication:
    """A part that has ended and whose bundle is not known to be durable."""

    part: int
    first: int
    count: int
    ended: str
    forced: bool
    event_frames: array[int]
    decision_frames: array[int]
    segment: int
    lost: Loss | None = None
    #: The context store at its beginning; None without an adapter.
    store: dict[str, Any] | None = None


@dataclass(slots=True)
class RecoveredSession:
    """A session as the journal holds it: the initial state of the daemon's session."""

    number: int
    description: SessionDescription
    #: The closing of the session; None if it was not closed.
    closing: Closing | None
    #: Number of the current part, from 1, and the index of its first event.
    part: int
    first: int
    #: The oldest segment with a frame of the session.
    segment: int
    #: The oldest segment that the current part needs, once the parts before it are in bundles.
    part_segment: int
    last_event_id: str | None
    #: Events of the session that are accepted, and that are decided.
    accepted: int
    decided: int
    supervisor: Supervisor
    #: Attempts that the engine was asked for in this part, by event id, in order, for an engine that counts them;
    #: None for any other.
    attempts: list[tuple[str, int]] | None
    ids: set[str] = field(default_factory=set)
    #: Packed positions of the frames of the current part.
    event_frames: array[int] = field(default_factory=lambda: array("Q"))
    decision_frames: array[int] = field(default_factory=lambda: array("Q"))
    #: Bytes of event lines in the current part.
    event_bytes: int = 0
    #: Accepted and not decided, in order; empty once the run is interrupted.
    undecided: list[ExternalEvent] = field(default_factory=list)
    #: Parts before the current one whose bundles are still to be published.
    unpublished: list[PendingPublication] = field(default_factory=list)
    #: Events that clients were told are durable and that are missing; None where none are.
    lost: Loss | None = None
    #: The end of the part before the current one; None in the first part.
    rotation: Rotation | None = None
    #: The newest segment with a frame of the session, at the start.
    last_segment: int = 0
    #: Episodes by termination, of the decisions that were read.
    terminations: Counter[RunTermination] = field(default_factory=Counter)
    #: The durable bundles that the journal still tells of, by part.
    publications: dict[int, Publication] = field(default_factory=dict)
    #: The lines of ``undecided``, if the session has a contract: payloads are derived from them.
    undecided_lines: bytes = b""
    #: The context store after the last decision; None without an adapter.
    store: dict[str, Any] | None = None
    #: Events that were refused, and the last of them that were read, in order.
    refused: int = 0
    refusals: deque[RefusedEvent] = field(default_factory=lambda: deque(maxlen=MOST_REFUSALS))
    #: The outcome of the first undecided event, if its episode ran: it is the decision, whatever ``in_doubt`` says.
    outcome: PendingOutcome | None = None
    #: The interruption of the run, after which nothing is decided; None while the run goes on.
    interruption: Interruption | None = None
    #: The events after the interruption; None where there are none.
    left_over: LeftOver | None = None

    @classmethod
    def new(cls, number: int, description: SessionDescription, segment: int) -> RecoveredSession:
        """Return the state of a new session: the journal holds only its OPEN frame, in that segment."""
        return cls(
            number=number,
            description=description,
            closing=None,
            part=1,
            first=0,
            segment=segment,
            part_segment=segment,
            last_event_id=None,
            accepted=0,
            decided=0,
            supervisor=Supervisor(description.graph, description.constraints, MemoryDecisionLog()),
            attempts=None,
            lost=description.lost,
        )


class QuarantinedSession(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A session that is neither served nor published nor deleted."""

    number: int
    #: Its id, or ``number N`` if the id is lost.
    session: str
    reason: str
    #: The segments that hold what is left of it.
    first_segment: int
    last_segment: int
    #: Whether it is damaged; otherwise its graph is gone.
    is_damaged: bool = True
    #: Whether it is to be taken out of the journal.
    is_due: bool = False


@dataclass(slots=True)
class Recovery:
    """The sessions that recovery has found."""

    sessions: list[RecoveredSession] = field(default_factory=list)
    #: Sessions that are damaged, or whose graph is gone, by id.
    quarantined: dict[str, QuarantinedSession] = field(default_factory=dict)
    #: Events that were replayed.
    events: int = 0
    torn_bytes: int = 0
    sealed: bool = True
    next_session: int = 1
    #: The greatest ``sequence`` of a bundle in PUBLISHED frames; 0 where none has one.
    published_sequence: int = 0
    #: Damage for which no session is quarantined: what was there concerns no session that is known and not over.
    damage: list[Damage] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each session's quarantine, by id."""
        return {name: session.reason for name, session in self.quarantined.items()}

    def quarantine(self, session: QuarantinedSession) -> None:
        """Quarantine a session."""
        self.quarantined[session.session] = session


class _Unrecoverable(ErgoCaptureError):
    """A session cannot be rebuilt from its frames."""


def recover(
    directory: Path,
    scan: ScanReport,
    storage: Storage,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recovery:
    """Rebuild every session that is not over.

    Args:
        directory: the journal.
        scan: what a scan found in it.
        storage: the filesystem.
        on_progress: called before each run of EVENTS frames is replayed, with the number of frames up to its end, and of all.

    Raises:
        StorageError: a segment cannot be read.
        ErgoCaptureError: the packages that an adapter needs are not installed.
    """
    recovery = Recovery(
        torn_bytes=0 if scan.torn is None else scan.torn.length,
        sealed=scan.ending is Verdict.SEALED or not scan.sessions,
        next_session=scan.next_session,
        published_sequence=greatest_published(directory, scan, storage),
    )
    alive = [frames for frames in scan.sessions.values() if not frames.done]
    total, done = sum(len(frames.events) for frames in alive), 0

    def step(frames: int) -> None:
        nonlocal done
        done += frames
        if on_progress is not None:
            on_progress(done, total)

    for frames in alive:
        history = read_history(directory, frames, storage)
        try:
            session = _Replay(directory, frames, history, storage, step).run()
        except (_Unrecoverable, ValueError) as error:
            if isinstance(error, ErgoCaptureError) and is_not_installed(error):
                # The error is not one of the session.
                raise
            _quarantine(recovery, scan, frames, history, str(error))
            continue
        recovery.events += session.accepted - session.first
        recovery.sessions.append(session)
    reported = {session.number for session in recovery.quarantined.values()}
    reported |= {frames.number for frames in scan.sessions.values() if frames.aside}
    recovery.damage = [damage for damage in scan.damage if reported.isdisjoint(damage.sessions)]
    return recovery


def _quarantine(
    recovery: Recovery, scan: ScanReport, frames: SessionFrames, history: SessionHistory, reason: str
) -> None:
    name = f"number {frames.number}" if history.description is None else history.description.session
    # Keep the segments with the session's damage too: the rest of its frames may be there.
    damaged = [damage.segment for damage in scan.damage if frames.number in damage.sessions]
    recovery.quarantine(
        QuarantinedSession(
            number=frames.number,
            session=name,
            reason=reason,
            first_segment=min((frames.first_segment or frames.last_segment, *damaged)),
            last_segment=max((frames.last_segment, *damaged)),
        )
    )


class _LastEntry:
    """A decision log that keeps the last entry, to be compared with the recorded decision."""

    def __init__(self) -> None:
        self.entry: DecisionLogEntry | None = None

    def log(self, entry: DecisionLogEntry) -> None:
        self.entry = entry


class _Replay:
    """Replays one session.

    Raises:
        _Unrecoverable: the session is damaged.
    """

    def __init__(
        self,
        directory: Path,
        frames: SessionFrames,
        history: SessionHistory,
        storage: Storage,
        step: Callable[[int], None],
    ) -> None:
        if history.damage is not None:
            raise _Unrecoverable(history.damage)
        if history.description is None:
            raise _Unrecoverable("its first segment is missing, and with it what the session is")
        self._directory = directory
        self._storage = storage
        self._step = step
        self._frames = frames
        self._history = history
        self._log = _LastEntry()
        self._session = session = self._initial(history.description)
        contract = session.description.contract
        self._derivation = None if contract is None else Derivation(contract, session.store)
        #: The context store at the beginning of the part that is read.
        self._store = session.store
        self._undecided_lines: list[bytes] = []

    def _initial(self, description: SessionDescription) -> RecoveredSession:
        """Return the session at the beginning of the oldest part that is to be read.

        Parts whose bundles are durable are not read, as long as a later part begins after them.
        """
        part, first, last_event_id, rotation = 1, 0, None, None
        for end in self._history.rotations:
            if end.rotation.part not in self._history.publications:
                break
            rotation = end.rotation
            part, first, last_event_id = rotation.part + 1, end.boundary, rotation.last_event_id
        if self._frames.open is None and first == 0:
            raise _Unrecoverable("its first segment is missing, and with it events that were in no bundle yet")
        segment = self._frames.first_segment
        return RecoveredSession(
            number=self._frames.number,
            description=description,
            closing=self._history.closing,
            part=part,
            first=first,
            segment=segment,
            part_segment=segment,
            last_event_id=last_event_id,
            accepted=first,
            decided=first,
            supervisor=Supervisor(description.graph, description.constraints, self._log),
            attempts=[] if description.engine == SCRIPTED else None,
            lost=self._history.lost_until(part),
            rotation=rotation,
            store=None if rotation is None else rotation.store,
            refused=0 if rotation is None else rotation.refused,
            last_segment=self._frames.last_segment,
            publications=self._history.publications,
        )

    def run(self) -> RecoveredSession:
        """Replay all parts from the oldest that is to be read; return the session at its end."""
        session = self._session
        joins = may_join(session)
        plain = _Outcomes(self._rows(session.first))
        outcomes = plain if joins else _one_by_one(self._rows(session.first))
        ends = deque(end for end in self._history.rotations if end.boundary > session.first)
        start = session.first
        for run in read_runs(self._directory, self._frames.events, self._storage):
            self._step(len(run.bodies))
            for frames in _split(run, start, ends, joins=joins):
                first = frames.firsts[0]
                if ends and first >= ends[0].boundary:
                    self._end_part(ends.popleft())
                session.event_frames.extend(frames.positions)
                session.event_bytes += sum(map(len, frames.bodies))
                follows = session.accepted
                if joins:
                    self._take_outlines(frames, plain)
                else:
                    self._take_events(frames.bodies[0], outcomes)
                accepted = frames.firsts[-1] + frames.counts[-1]
                if session.accepted != accepted:
                    # Of joined frames, name the first that does not follow, as if they were taken one by one.
                    for begun, count in zip(frames.firsts, frames.counts, strict=True):
                        if begun != follows:
                            first, accepted = begun, begun + count
                            break
                        follows += count
                    raise _Unrecoverable(f"the frame of events {first} to {accepted - 1} holds others")
        if next(outcomes, None) is not None:
            raise _Unrecoverable("it has decisions about events that are missing")
        if ends:
            self._end_part(ends.popleft())
        for end in self._history.rotations:
            if end.rotation.part + 1 == session.part:
                # The ROTATE frame is needed too: if the OPEN frame is gone, it describes the session.
                needed = [end.position, *map(Position.unpack, session.event_frames[:1])]
                session.part_segment = min(position.segment for position in needed)
        self._end()
        return session

    def _take_outlines(self, frames: FrameRun, outcomes: _Outcomes) -> None:
        """Take the events of frames of a session that defers nothing: only undecided events need their payloads."""
        session = self._session
        body = b"".join(frames.bodies)
        events = read_outlines(body)
        session.ids.update([event.event_id for event in events])
        session.accepted += len(events)
        session.last_event_id = events[-1].event_id if events else session.last_event_id
        done = 0
        while done < len(events):
            episode, count = outcomes.take_plain(len(events) - done)
            if count:
                taken = events[done : done + count]
                done += count
                if session.supervisor.begin_all(taken, episode):
                    session.decided += count
                    session.terminations[RunTermination.Completed] += count
                    if session.attempts is not None:
                        session.attempts += [(event.event_id, 1) for event in taken]
                else:
                    for event, plain in zip(taken, expand_run(PlainRun(episode, count)), strict=True):
                        self._decide_again(event, plain)
                continue
            outcome = next(outcomes, None)
            if outcome is None:
                session.undecided += islice(read_body(body), done, None)
                return
            if not isinstance(outcome, DecisionOutcome):
                raise _differs(events[done].event_id)
            self._decide_again(events[done], outcome)
            done += 1

    def _take_events(self, body: bytes, outcomes: Iterator[DecisionOutcome | Refusal]) -> None:
        session, derivation = self._session, self._derivation
        if derivation is not None:
            self._take_derived(body, outcomes, derivation)
            return
        for event in read_body(body):
            session.ids.add(event.event_id)
            session.accepted += 1
            session.last_event_id = event.event_id
            outcome = next(outcomes, None)
            if outcome is None:
                session.undecided.append(event)
            elif isinstance(outcome, DecisionOutcome):
                self._decide_again(event, outcome)
            else:
                raise _differs(event.event_id)

    def _take_derived(self, body: bytes, outcomes: Iterator[DecisionOutcome | Refusal], derivation: Derivation) -> None:
        """Take the events of a session with a contract."""
        session = self._session
        events = derivation.read(body)
        decided = 0
        for event in events:
            outcome = next(outcomes, None)
            if outcome is None:
                break
            decided += 1
            if session.interruption is not None:
                raise _Unrecoverable(f"event {event.event_id!r} is decided after the interruption of the run")
            bound = derivation.bind(event)
            if isinstance(outcome, Refusal):
                if not isinstance(bound, Refusal):
                    raise _Unrecoverable(
                        f"event {event.event_id!r} is recorded as refused, and its payload is not refused"
                    )
                session.refusals.append(RefusedEvent(session.decided, event.event_id, outcome.code, outcome.message))
                session.refused += 1
                session.decided += 1
                continue
            if isinstance(bound, Refusal):
                raise _Unrecoverable(
                    f"event {event.event_id!r} is recorded as decided, and its payload is refused: {bound.message}"
                )
            self._decide_again(bound.event, outcome)
            session.interruption = derivation.settle([each.effect for each in outcome.effects])
        session.ids.update([event.event_id for event in events])
        session.accepted += len(events)
        session.last_event_id = events[-1].event_id if events else session.last_event_id
        if decided < len(events):
            session.undecided += islice(read_body(body), decided, None)
            self._undecided_lines += split_lines(body)[decided - len(events) :]

    def _rows(self, start: int) -> Iterator[PlainRun | DecisionOutcome | Refusal]:
        session = self._session
        for run in read_runs(self._directory, self._frames.decisions, self._storage):
            # Read only up to the end of a part: frames are counted by part.
            # A frame without decisions says that the run was interrupted; it is not joined with others.
            for frames in _split(run, start, self._history.rotations, joins=all(run.counts)):
                session.decision_frames.extend(frames.positions)
                body = join_rows(frames.bodies)
                for row in read_rows(body):
                    if not isinstance(row, EndOfRun):
                        yield row
                session.interruption = session.interruption or end_of_run(body)

    def _end(self) -> None:
        """Take the closing, outcome, interruption and losses of the session."""
        session, closing, outcome = self._session, self._history.closing, self._history.outcome
        if self._derivation is not None:
            session.store = self._derivation.snapshot()
        if closing is not None:
            session.interruption, session.left_over = closing.interruption, closing.left_over
        elif session.interruption is not None and session.undecided:
            first = session.undecided[0].event_id
            session.left_over = LeftOver(session.decided, first, len(session.undecided))
        if session.interruption is not None:
            session.undecided = []
        elif self._undecided_lines:
            session.undecided_lines = b"".join(self._undecided_lines)
        if outcome is not None and outcome.outcome.index != session.decided:
            raise _Unrecoverable(
                f"it has an outcome of event {outcome.outcome.index}, and decisions before it are missing"
            )
        if outcome is not None and not session.undecided:
            raise _Unrecoverable(f"it has an outcome of event {outcome.outcome.index}, which is missing")
        session.outcome = outcome

    def _decide_again(self, event: EventLike, outcome: DecisionOutcome) -> None:
        session = self._session
        step = session.supervisor.offer(event)
        if isinstance(step, Run):
            if outcome.termination is None or outcome.decision is not Decision.Invoke:
                raise _differs(event.event_id)
            result = None
            if outcome.effects:
                result = RunResult(outcome.termination, tuple(each.effect for each in outcome.effects))
            session.supervisor.settle(step, outcome.termination, outcome.retry_count, result)
            session.terminations[outcome.termination] += 1
            if session.attempts is not None:
                session.attempts.append((step.origin.event_id, outcome.retry_count + 1))
        entry = self._log.entry
        assert entry is not None
        # The other fields come from the event, the constraints or the outcome itself; of the effects, only the hashes
        # do not.
        if (
            entry.decision is not outcome.decision
            or entry.episode_id != outcome.episode_id
            or entry.schedule_at != outcome.schedule_at
            or entry.effects != outcome.effects
        ):
            raise _differs(event.event_id)
        session.decided += 1

    def _end_part(self, end: PartEnd) -> None:
        """End the part that is being read; its bundle is still to be published."""
        session, rotation = self._session, end.rotation
        session.unpublished.append(
            PendingPublication(
                rotation.part,
                session.first,
                end.boundary - session.first,
                "rotated",
                rotation.forced,
                session.event_frames,
                session.decision_frames,
                session.segment,
                session.lost,
                self._store,
            )
        )
        if self._derivation is not None and self._derivation.snapshot() != rotation.store:
            raise _Unrecoverable(f"the context store at the end of part {rotation.part} is not what its effects wrote")
        self._store = rotation.store
        session.part, session.first, session.rotation = rotation.part + 1, end.boundary, rotation
        session.lost = self._history.lost_until(session.part)
        session.event_frames, session.decision_frames = array("Q"), array("Q")
        session.event_bytes = 0
        session.supervisor = Supervisor(session.description.graph, session.description.constraints, self._log)


def _one_by_one(
    rows: Iterable[PlainRun | DecisionOutcome | Refusal],
) -> Iterator[DecisionOutcome | Refusal]:
    """Yield the recorded decisions and refusals, one for each event."""
    for row in rows:
        if isinstance(row, PlainRun):
            yield from expand_run(row)
        else:
            yield row


class _Outcomes:
    """The recorded decisions and refusals of a session, one for each event; plain invocations may be taken together."""

    def __init__(self, rows: Iterator[PlainRun | DecisionOutcome | Refusal]) -> None:
        self._rows = rows
        #: The next row; None before the first look, and after the last row.
        self._row: PlainRun | DecisionOutcome | Refusal | None = None

    def __iter__(self) -> _Outcomes:
        return self

    def __next__(self) -> DecisionOutcome | Refusal:
        episode, count = self.take_plain(1)
        if count:
            return next(expand_run(PlainRun(episode, 1)))
        row, self._row = self._row, None
        if row is None:
            raise StopIteration
        assert not isinstance(row, PlainRun)
        return row

    def take_plain(self, most: int) -> tuple[int, int]:
        """Take at most ``most`` plain invocations, if they are next; return the first episode and their number."""
        row = self._row
        if row is None:
            row = self._row = next(self._rows, None)
        if not isinstance(row, PlainRun):
            return 0, 0
        episode, taken = row.episode, min(row.count, most)
        if taken == row.count:
            self._row = None
        else:
            row.episode += taken
            row.count -= taken
        return episode, taken


def may_join(session: RecoveredSession) -> bool:
    """Return whether the frames of a session can be read together, because only undecided events need a payload."""
    return session.description.contract is None and not session.supervisor.is_limited


def _split(run: FrameRun, start: int, ends: Sequence[PartEnd], *, joins: bool) -> Iterator[FrameRun]:
    """Yield the frames of a run from the index ``start`` on, those of each part together, or one by one."""
    positions, firsts, counts, bodies = run
    boundaries = [end.boundary for end in ends]
    begin, size = 0, len(bodies)
    while begin < size:
        if firsts[begin] + max(counts[begin], 1) <= start:
            begin += 1
            continue
        stop = begin + 1
        if joins:
            at = bisect_right(boundaries, firsts[begin])
            stop = size if at == len(boundaries) else bisect_left(firsts, boundaries[at], begin + 1)
        yield FrameRun(positions[begin:stop], firsts[begin:stop], counts[begin:stop], bodies[begin:stop])
        begin = stop


def _differs(event_id: str) -> _Unrecoverable:
    return _Unrecoverable(f"the decision recorded for event {event_id!r} is not the one it leads to")
