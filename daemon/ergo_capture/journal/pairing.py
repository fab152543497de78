"""Brings decisions to their events, as frames come in the journal's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ergo_capture.journal.decision_rows import DecisionOutcome, read_decisions
from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Frame, FrameKind
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import SessionDescription, read_description
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord

#: An event's index in its session, the event, and what was decided about it.
Decided = tuple[int, ExternalEventRecord, EpisodeInvocationRecord]


class Pairing:
    """The events of one session that wait for their decisions."""

    def __init__(self, description: SessionDescription) -> None:
        self._deadline = description.constraints.deadline
        self._waiting: deque[tuple[int, ExternalEvent]] = deque()

    def take(self, frame: Frame) -> Iterator[Decided]:
        """The events that a frame decides, in order; a frame of events decides none.

        Raises:
            JournalDamaged: the frame's body is not what a daemon writes.
        """
        header = frame.header
        if header.kind == FrameKind.EVENTS:
            self._waiting.extend(events_of(frame))
        elif header.kind == FrameKind.DECISIONS:
            for index, outcome in enumerate(_outcomes_of(frame), header.first):
                # Why there may be earlier ones: they belong to another part, which is not read.
                while self._waiting and self._waiting[0][0] < index:
                    self._waiting.popleft()
                # Why there may be none: the segment that held it was retired, and it is in a bundle.
                if self._waiting and self._waiting[0][0] == index:
                    event = self._waiting.popleft()[1]
                    record = outcome.to_record(event.event_id, self._deadline)
                    yield index, ExternalEventRecord.from_event(event), record

    def __repr__(self) -> str:
        return f"<Pairing {len(self._waiting)} events wait>"


def events_of(frame: Frame) -> list[tuple[int, ExternalEvent]]:
    """The events of a frame, each with its index in the session.

    Raises:
        JournalDamaged: the body is not what was accepted.
    """
    try:
        return list(enumerate(read_body(frame.body), frame.header.first))
    except ValueError as error:
        raise _not_written(frame, error) from error


def described(frame: Frame) -> SessionDescription:
    """The description that an OPEN frame holds.

    Raises:
        JournalDamaged: it holds none.
    """
    try:
        return read_description(frame.body)
    except ValueError as error:
        raise _not_written(frame, error) from error


def _outcomes_of(frame: Frame) -> list[DecisionOutcome]:
    try:
        return list(read_decisions(frame.body))
    except ValueError as error:
        raise _not_written(frame, error) from error


def _not_written(frame: Frame, error: ValueError) -> JournalDamaged:
    header = frame.header
    return JournalDamaged(
        f"read journal: frame {header.index} of batch {header.batch} holds what no daemon writes: {error}",
        op="read journal",
        hint="`ergo-capture doctor` says what is damaged",
    )
