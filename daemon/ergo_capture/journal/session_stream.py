"""Read a session in a journal as a bundle is read, in memory that does not grow with the session.

A part is what becomes one bundle: a whole session, unless it was rotated. If a daemon is writing the journal, its
content at the time of the scan is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ergo_capture.journal.decision_rows import DecisionOutcome, Refusal, read_decisions
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Frame, FrameKind, Position
from ergo_capture.journal.lines import read_body, read_semantic_kinds
from ergo_capture.journal.payloads import Contract, SessionDescription
from ergo_capture.journal.reader import read_frames, undecodable
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import SessionFrames
from ergo_capture.journal.session_frames import PendingOutcome, read_history
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.storage import Storage

if TYPE_CHECKING:
    from ergo_capture.adapter.events import HostedEvent

#: The value of ``PartStream.ended`` while the session goes on.
OPEN: Final = "open"


@dataclass(frozen=True, slots=True)
class PartStream:
    """One part of a session (``RecordStream``)."""

    directory: Path
    storage: Storage
    frames: SessionFrames
    description: SessionDescription
    #: The damage of the session, in words; None for none.
    damage: str | None
    #: Number of the part, from 1.
    part: int
    #: Index in the session of the first event.
    first: int
    #: Index after the last event; None where the part goes on.
    end: int | None
    #: ``complete``, ``recovered``, ``interrupted``, ``rotated`` or ``open``.
    ended: str
    #: Whether the bundle is durable.
    published: bool
    #: The context store at the beginning; None where it is empty.
    store: dict[str, Any] | None = None
    #: The outcome of the first undecided event, if its episode has run and its intents are being sent.
    outcome: PendingOutcome | None = None

    @property
    def capture_version(self) -> str:
        """The format version of the part's bundle."""
        return CAPTURE_FORMAT_VERSION

    @property
    def graph_id(self) -> str:
        """The graph whose episodes were decided."""
        return self.description.graph

    @property
    def config(self) -> Constraints:
        """The constraints under which they were decided."""
        return self.description.constraints

    @property
    def adapter_provenance(self) -> str:
        """The adapter's provenance; ``none`` without one."""
        return self.description.adapter_provenance

    @property
    def runtime_provenance(self) -> str:
        """The engine's provenance."""
        return self.description.runtime_provenance

    @property
    def egress_provenance(self) -> str | None:
        """The egress channels' provenance; None without any."""
        return self.description.egress_provenance

    def events(self) -> Iterator[ExternalEventRecord]:
        """Yield the events, from the first.

        Raises:
            JournalDamaged: the session is damaged.
            StorageError: the journal cannot be read.
        """
        if self.description.contract is not None:
            yield from (each.event for each in self._derived())
            return
        for frame in self._read(self.frames.events):
            if self._overlaps(frame):
                for index, event in events_of(frame):
                    if self._has(index):
                        yield ExternalEventRecord.from_event(event)

    def semantic_kinds(self) -> Iterator[str | None]:
        """Yield the events' semantic kinds, None for an event without one. Raises as ``events``."""
        if self.description.contract is not None:
            yield from (each.semantic_kind for each in self._derived())
            return
        for frame in self._read(self.frames.events):
            if self._overlaps(frame):
                header = frame.header
                try:
                    kinds = read_semantic_kinds(frame.body, header.count)
                except ValueError as error:
                    raise undecodable(frame, error) from error
                yield from (kind for index, kind in enumerate(kinds, header.first) if self._has(index))

    def decisions(self) -> Iterator[EpisodeInvocationRecord]:
        """Yield the decisions, from the first; there may be fewer than events. Raises as ``events``."""
        return (record for _, _, record in self.decided())

    def decided(self) -> Iterator[Decided]:
        """Yield the decided events, each with its index in the session and its decision. Raises as ``events``."""
        pairing = Pairing(self.description, self.store, self.first)
        for frame in self._read(sorted([*self.frames.events, *self.frames.decisions])):
            if self._overlaps(frame):
                for decided in pairing.take(frame):
                    if self._has(decided[0]):
                        yield decided

    def _derived(self) -> Iterator[_Derived]:
        """Yield the events of a session with a contract: the decided ones as decided, then the undecided as sent."""
        assert self.description.contract is not None
        pairing = DerivedPairing(self.description, self.description.contract, self.store, self.first)
        for frame in self._read(sorted([*self.frames.events, *self.frames.decisions])):
            if self._overlaps(frame):
                for kind, (index, event, _) in pairing.take_with_kinds(frame):
                    if self._has(index):
                        yield _Derived(event, kind)
        for index, sent, hosted in pairing.waiting:
            if self._has(index):
                yield _Derived(ExternalEventRecord.from_event(sent), hosted.semantic_kind)

    @property
    def is_whole(self) -> bool:
        """Whether the journal still has the first event; segments of published parts are deleted."""
        frames = self._read(self.frames.events[:1])
        return all(frame.header.first <= self.first for frame in frames)

    def size(self) -> int:
        """Return the size of the part's frames in bytes."""
        return sum(
            frame.header.size
            for frame in self._read(sorted([*self.frames.events, *self.frames.decisions]))
            if self._has(frame.header.first)
        )

    def _has(self, index: int) -> bool:
        return self.first <= index and (self.end is None or index < self.end)

    def _overlaps(self, frame: Frame) -> bool:
        header = frame.header
        return header.first + header.count > self.first and (self.end is None or header.first < self.end)

    def _read(self, packed: Iterable[int]) -> Iterator[Frame]:
        if self.damage is not None:
            raise JournalDamaged(
                f"read session {self.description.session} in '{self.directory}': {self.damage}",
                op="read session",
                path=self.directory,
                hint="`ergo-capture doctor` says what is damaged, `ergo-capture recover` saves what can be proved",
            )
        return read_frames(self.directory, map(Position.unpack, packed), self.storage)


def parts_in(directory: Path, storage: Storage) -> list[PartStream]:
    """Return every part that the journal has from its first event, published ones too, in the order of sessions.

    Raises:
        JournalError: the directory is not a journal, or a newer version wrote it.
        StorageError: the journal cannot be read.
    """
    found = scan(directory, storage)
    return [
        part
        for number in sorted(found.sessions)
        for part in _parts_of(directory, storage, found.sessions[number])
        if part.damage is not None or part.is_whole
    ]


def _parts_of(directory: Path, storage: Storage, frames: SessionFrames) -> Iterator[PartStream]:
    history = read_history(directory, frames, storage)
    description = history.description
    if description is None:
        return

    def part(
        number: int,
        first: int,
        end: int | None,
        ended: str,
        store: dict[str, Any] | None,
        outcome: PendingOutcome | None = None,
    ) -> PartStream:
        published = number in history.publications
        about = msgspec.structs.replace(description, lost=history.lost_until(number))
        return PartStream(
            directory, storage, frames, about, history.damage, number, first, end, ended, published, store, outcome
        )

    number, first, store = 1, 0, None
    for rotation, end, _ in history.rotations:
        # Without the OPEN frame it is unknown where the first part begins.
        if first or frames.open is not None:
            yield part(rotation.part, first, end, "rotated", store)
        number, first, store = rotation.part + 1, end, rotation.store
    # Events after the end are left over.
    ended = OPEN if history.closing is None else history.closing.ended
    yield part(number, first, history.total, ended, store, history.outcome)


#: The index of an event in its session, the event, and its decision.
Decided = tuple[int, ExternalEventRecord, EpisodeInvocationRecord]


class _Derived(NamedTuple):
    """An event as it was decided, and its semantic kind."""

    event: ExternalEventRecord
    semantic_kind: str | None


class Pairing:
    """Matches the events of one session with their decisions, as frames come in the journal's order.

    Refused events are left out. Of a session with a contract, ``DerivedPairing`` derives the events.

    Args:
        description: the session.
        store: the context store at the beginning; None where it is empty.
        first: index of the first event after ``store``; if the store is needed, earlier events are left out.
    """

    def __init__(self, description: SessionDescription, store: dict[str, Any] | None = None, first: int = 0) -> None:
        contract = description.contract
        self._derived = None if contract is None else DerivedPairing(description, contract, store, first)
        self._deadline = description.constraints.deadline
        self._waiting: deque[tuple[int, ExternalEvent]] = deque()

    def take(self, frame: Frame) -> Iterator[Decided]:
        """Yield the events that a frame decides, in order; a frame of events decides none.

        Raises:
            JournalDamaged: the frame's body cannot be decoded.
        """
        if self._derived is not None:
            yield from (decided for _, decided in self._derived.take_with_kinds(frame))
            return
        header = frame.header
        if header.kind == FrameKind.EVENTS:
            self._waiting.extend(events_of(frame))
        elif header.kind == FrameKind.DECISIONS:
            for index, outcome in enumerate(_outcomes_of(frame), header.first):
                # Earlier events belong to another part, which is not read.
                while self._waiting and self._waiting[0][0] < index:
                    self._waiting.popleft()
                # The event may be missing: its segment may have been deleted once the event was in a bundle.
                if self._waiting and self._waiting[0][0] == index:
                    event = self._waiting.popleft()[1]
                    if isinstance(outcome, Refusal):
                        continue
                    record = outcome.to_record(event.event_id, self._deadline)
                    yield index, ExternalEventRecord.from_event(event), record


class DerivedPairing:
    """Matches the events of a session with a contract with their decisions. Takes the arguments of ``Pairing``."""

    def __init__(
        self, description: SessionDescription, contract: Contract, store: dict[str, Any] | None, first: int
    ) -> None:
        self._derivation = Derivation(contract, store)
        self._deadline = description.constraints.deadline
        self._first = first
        #: Events that are not decided, as they were sent.
        self.waiting: deque[tuple[int, ExternalEvent, HostedEvent]] = deque()

    def take_with_kinds(self, frame: Frame) -> Iterator[tuple[str | None, Decided]]:
        """Yield the events that a frame decides, with their semantic kinds. Raises as ``Pairing.take``."""
        header = frame.header
        try:
            if header.kind == FrameKind.EVENTS:
                sent, hosted = read_body(frame.body), self._derivation.read(frame.body)
                found = zip(count(header.first), sent, hosted, strict=False)
                self.waiting.extend(each for each in found if each[0] >= self._first)
            elif header.kind == FrameKind.DECISIONS:
                for index, outcome in enumerate(read_decisions(frame.body), header.first):
                    if self.waiting and self.waiting[0][0] == index:
                        yield from self._decide(outcome)
        except ValueError as error:
            raise undecodable(frame, error) from error

    def _decide(self, outcome: DecisionOutcome | Refusal) -> Iterator[tuple[str | None, Decided]]:
        index, _, hosted = self.waiting.popleft()
        event = self._derivation.follow(hosted, self._derivation.bind(hosted), outcome)
        if isinstance(event, ExternalEvent) and isinstance(outcome, DecisionOutcome):
            record = outcome.to_record(event.event_id, self._deadline)
            yield hosted.semantic_kind, (index, ExternalEventRecord.from_event(event), record)


def events_of(frame: Frame) -> list[tuple[int, ExternalEvent]]:
    """Return the events of a frame, each with its index in the session.

    Raises:
        JournalDamaged: the body cannot be decoded.
    """
    try:
        return list(enumerate(read_body(frame.body), frame.header.first))
    except ValueError as error:
        raise undecodable(frame, error) from error


def _outcomes_of(frame: Frame) -> list[DecisionOutcome | Refusal]:
    try:
        return list(read_decisions(frame.body))
    except ValueError as error:
        raise undecodable(frame, error) from error
