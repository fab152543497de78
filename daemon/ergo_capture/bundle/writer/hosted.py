"""Compose bundles of sessions with a contract: derive payloads, leave out refused events, keep left-over events.

Other sessions do not use this module: their events are expanded without being decoded (``expand.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ergo_capture.bundle.manifest import NAMED_REFUSALS, RefusedEvents, RestFile
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.bundle.names import rest_path
from ergo_capture.bundle.statistics import StatisticsCounter
from ergo_capture.bundle.writer.elements import Elements, joined
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionOutcome, Refusal, read_decisions
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.lines import split_lines
from ergo_capture.journal.payloads import RefusedEvent
from ergo_capture.kernel.records import ExternalEventRecord, encode_decision, encode_event
from ergo_capture.storage.atomic import AtomicFile

if TYPE_CHECKING:
    from ergo_capture.adapter.events import HostedEvent
    from ergo_capture.journal.payloads import Contract
    from ergo_capture.kernel.time import EventTime


class HostedPart:
    """The events of one part of a session, which are derived one after the other.

    Args:
        contract: the session's contract.
        store: the context store at the beginning of the part.
        first: index in the session of the part's first event.
        outcomes: the decisions and refusals of its events, in order, for ``take``.
        deadline: the configured deadline, which is in every decision.
        counter: counts the events and decisions that ``take`` returns.
    """

    def __init__(
        self,
        contract: Contract,
        store: dict[str, object] | None,
        first: int,
        outcomes: Iterable[DecisionOutcome | Refusal] = (),
        deadline: EventTime | None = None,
        counter: StatisticsCounter | None = None,
    ) -> None:
        self._derivation = Derivation(contract, store)
        self._outcomes = iter(outcomes)
        self._deadline = deadline
        #: Index in the session of the next event.
        self._index = first
        self._digest = MergedDigest()
        self._counter = counter or StatisticsCounter()
        #: Events of the bundle so far.
        self.events = 0
        self.refused = 0
        self._named: list[RefusedEvent] = []

    def take(self, body: bytes, start: int, stop: int) -> Expanded | None:
        """Return the events of a body from ``start`` to before ``stop``; None if there are fewer decisions.

        Raises:
            ValueError: an event was refused and is decided now, or the reverse.
        """
        ids: list[str] = []
        records: list[ExternalEventRecord] = []
        outcomes: list[DecisionOutcome] = []
        kinds: list[str | None] = []
        sizes: list[int] = []
        number = self.events
        events: list[bytes] = []
        decisions: list[bytes] = []
        for event in islice(self.read(body), start, stop):
            outcome = next(self._outcomes, None)
            if outcome is None:
                return None
            record = self.derive(event, outcome)
            if record is not None and isinstance(outcome, DecisionOutcome):
                ids.append(event.event_id)
                kinds.append(event.semantic_kind)
                sizes.append(len(record.payload))
                events.append(b"," + encode_event(record))
                decisions.append(b"," + encode_decision(outcome.to_record(event.event_id, self._deadline)))
                records.append(record)
                outcomes.append(outcome)
        self._counter.add_events(
            ids,
            [record.kind.value for record in records],
            [record.event_time.total_nanos for record in records],
            [len(record.payload) for record in records],
        )
        for outcome in outcomes:
            self._counter.add_decision(outcome)
        return Expanded(ids, kinds, joined(events, sizes, number), joined(decisions, list(map(len, decisions)), number))

    def read(self, body: bytes) -> list[HostedEvent]:
        """Return the events of an EVENTS body, as they were sent.

        Raises:
            ValueError: a line is not one that the daemon accepts.
        """
        return self._derivation.read(body)

    def derive(self, event: HostedEvent, outcome: DecisionOutcome | Refusal) -> ExternalEventRecord | None:
        """Return the next event as it was decided; None if it was refused.

        Raises:
            ValueError: it was refused and is decided now, or the reverse.
        """
        derivation, index = self._derivation, self._index
        held: Sequence[str] = ()
        bound = derivation.bind(event)
        if len(derivation.store) and not isinstance(bound, Refusal):
            held = derivation.store.held_by(msgspec.json.decode(bound.event.payload))
        decided = derivation.follow(event, bound, outcome)
        self._index += 1
        if isinstance(decided, Refusal):
            self.refused += 1
            if len(self._named) < NAMED_REFUSALS:
                self._named.append(RefusedEvent(index, event.event_id, decided.code, decided.message))
            return None
        self._digest.add(self.events, held)
        self.events += 1
        return ExternalEventRecord.from_event(decided)

    def finish(self) -> HostedCounts:
        """Return the fields of the part's manifest."""
        refused = RefusedEvents(self.refused, self._named) if self.refused else None
        merged = None if self._derivation.binding.adapter is None else self._digest.hexdigest()
        return HostedCounts(self.events, refused, merged)


class Expanded(NamedTuple):
    """Some events of a bundle, and their decisions."""

    ids: list[str]
    semantic_kinds: list[str | None]
    events: Elements
    decisions: Elements


class HostedCounts(msgspec.Struct, frozen=True):
    """Fields of the manifest of a part whose payloads were derived; a worker process can return it."""

    events: int
    refused: RefusedEvents | None
    #: None without an adapter.
    merged: str | None


def outcomes_of(bodies: Iterable[bytes]) -> Iterator[DecisionOutcome | Refusal]:
    """Yield the decisions and refusals of DECISIONS bodies, in order."""
    for body in bodies:
        yield from read_decisions(body)


def write_rest(bundle: Path, bodies: Iterable[tuple[int, bytes]], first: int, count: int) -> RestFile:
    """Write the events that were left over, as they were sent, durably to a file beside the bundle.

    Args:
        bundle: the bundle's path.
        bodies: EVENTS bodies that hold the events, in order, each with the index of its first event.
        first: index in the session of the first event that was left over.
        count: how many there are.

    Raises:
        CaptureWriteError: the file could not be written.
        ErgoCaptureError: there are fewer events.
    """
    path = rest_path(bundle)
    written = 0
    digest = sha256()
    with AtomicFile(path, what="events that were left over") as file:
        for index, body in bodies:
            lines = split_lines(body)[max(0, first - index) :]
            text = b"".join(lines)
            file.write(text)
            digest.update(text)
            written += len(lines)
        if written != count:
            raise ErgoCaptureError(
                f"write '{path}': the journal holds {written} events after the interruption, and had {count}",
                op="write events that were left over",
                path=path,
                hint="keep the journal as it is and run `ergo-capture doctor` on it",
            )
        file.commit()
        return RestFile(file.bytes_written, digest.hexdigest())
