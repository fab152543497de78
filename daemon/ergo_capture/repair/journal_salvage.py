"""Salvage the provable part of a damaged journal: a bundle for each part of each session.

A part begins with a new supervisor, so damage to one part does not affect the parts after it. A part with a durable
bundle that still has its published digest is skipped.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ergo_capture.bundle.catalogue import find_published
from ergo_capture.bundle.manifest import RestFile, encode_manifest, manifest_for
from ergo_capture.bundle.names import (
    bundle_name,
    bundle_path,
    bundle_stem,
    manifest_path,
    other_form,
    rest_path,
    safe_name,
)
from ergo_capture.bundle.reader.opening import text_sha256
from ergo_capture.bundle.semantic_kinds import KindColumn
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.bundle.writer.hosted import HostedPart
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionOutcome, read_decisions
from ergo_capture.journal.frame import Frame, Position
from ergo_capture.journal.lines import read_body, split_lines
from ergo_capture.journal.payloads import Contract, Publication
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.repair.output import SalvageOutput
from ergo_capture.repair.partial_session import PartialSession, PartRange
from ergo_capture.repair.report import Gap, Problem, SalvageReport
from ergo_capture.repair.salvage import salvage
from ergo_capture.storage import Storage
from ergo_capture.storage.atomic import write_bytes_atomic

if TYPE_CHECKING:
    from ergo_capture.adapter.events import HostedEvent

_Item = TypeVar("_Item")


class SalvagedPart(msgspec.Struct, frozen=True, kw_only=True):
    """The result of salvaging one part of a session."""

    session: str
    graph: str
    part: int
    #: ``published`` if its bundle is durable and was skipped, else the manifest's ``ended``: ``complete``,
    #: ``recovered``, ``interrupted``, ``rotated``, or ``open``.
    ended: str
    #: The existing or written bundle; None without a destination.
    bundle: str | None
    #: None for a published part.
    counts: SalvageReport | None

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.counts is None or self.counts.whole

    @property
    def lossy(self) -> bool:
        """Whether something of it is lost; undecided events of a running part do not count as lost."""
        return not (self.whole or (self.ended == "open" and self.counts is not None and self.counts.only_undecided))


def salvage_journal(
    directory: Path,
    scan: ScanReport,
    storage: Storage,
    destination: Path | None,
    *,
    only: set[int] | None = None,
    on_part: Callable[[SalvagedPart], None] = lambda _part: None,
) -> list[SalvagedPart]:
    """Write a bundle below ``destination`` for each part that is not published.

    Args:
        directory: the journal.
        scan: the report of a scan of it.
        storage: the filesystem.
        destination: a directory; None to count only.
        only: numbers of the sessions to salvage; None for all.
        on_part: called with each part when it is done.

    Raises:
        StorageError: a segment cannot be read.
        CaptureWriteError: a file could not be written.
        ErgoCaptureError: a written bundle does not verify.
    """
    parts = []
    for number in sorted(scan.sessions):
        if (only is not None and number not in only) or scan.sessions[number].aside:
            continue
        session = PartialSession(directory, scan, scan.sessions[number], storage)
        for part in _SessionSalvage(session).run(destination):
            parts.append(part)
            on_part(part)
    return parts


class _SessionSalvage:
    def __init__(self, session: PartialSession) -> None:
        self.session = session
        #: Id of the last event that was returned; the next decision is about it.
        self._event_id = ""

    def run(self, destination: Path | None) -> Iterator[SalvagedPart]:
        """Salvage each part."""
        for part in self.session.parts():
            publication = None if part.merged else self.session.publications.get(part.part)
            if publication is not None and self._is_published(part, publication):
                yield self._published(part, publication)
            elif (standing := self._standing(part)) is not None:
                yield standing
            else:
                yield self._salvage(part, destination)

    def _is_published(self, part: PartRange, publication: Publication) -> bool:
        """Return whether the part's bundle is safe, so that the part can be skipped.

        If the bundle is missing and the journal does not have the whole part any more, it was moved elsewhere.
        """
        bundle = self._find(publication)
        if bundle is not None:
            return text_sha256(bundle) == publication.sha256
        return not salvage(self.session.head, self._events(part), self._decisions(part)).whole

    def _standing(self, part: PartRange) -> SalvagedPart | None:
        """Return the part as published if it is damaged and a bundle in ``bundles/`` has all of it; None otherwise.

        A snapshot may have been published before the damage.
        """
        session = self.session
        if session.frames.damage is None or not session.is_described or part.uncertain or part.merged:
            return None
        state, description = session.directory.parent, session.description
        plain = bundle_path(state, description.graph, description.session, part.part)
        for bundle in (plain, other_form(plain)):
            if not bundle.is_file():
                continue
            try:
                verdict = verify_bundle(bundle)
            except ErgoCaptureError:
                continue
            if verdict.ok and verdict.events >= part.end - part.first:
                return SalvagedPart(
                    session=description.session,
                    graph=description.graph,
                    part=part.part,
                    ended="published",
                    bundle=str(bundle),
                    counts=None,
                )
        return None

    def _find(self, publication: Publication) -> Path | None:
        return find_published(Path(publication.bundle), self.session.directory.parent / "bundles")

    def _published(self, part: PartRange, publication: Publication) -> SalvagedPart:
        recorded = Path(publication.bundle)
        session = self.session
        return SalvagedPart(
            # The frames with the description may have been deleted with their segment.
            session=session.description.session if session.is_described else bundle_stem(recorded).partition("~")[0],
            graph=session.description.graph if session.is_described else recorded.parent.name,
            part=part.part,
            ended="published",
            bundle=str(self._find(publication) or recorded),
            counts=None,
        )

    def _salvage(self, part: PartRange, destination: Path | None) -> SalvagedPart:
        description, path = self.session.description, None
        if destination is not None:
            path = destination / safe_name(description.graph) / bundle_name(description.session, part.part)
        head, contract = self.session.head, description.contract
        hosted = None if contract is None else _HostedRecords(self, part, contract)
        events = self._events(part) if hosted is None else hosted.events()
        decisions = self._decisions(part) if hosted is None else hosted.decisions()
        with nullcontext() if path is None else SalvageOutput(head, path, part.part) as output:
            report = salvage(head, events, decisions, output)
        report.refused_by_adapter = 0 if hosted is None else hosted.part.refused
        left_over = self._left_over(part)
        rest = None
        if left_over is not None:
            rest = self._save_rest(left_over, None if output is None else output.destination, report)
        if output is not None:
            path = output.destination
            if not output.stood:
                self._write_manifest(part, path, report, output.beside, hosted, rest)
        return SalvagedPart(
            session=description.session,
            graph=description.graph,
            part=part.part,
            ended=part.ended,
            bundle=None if path is None else str(path),
            counts=report,
        )

    def _left_over(self, part: PartRange) -> PartRange | None:
        """Return the events after the interruption that ended a part; None where there are none."""
        closing = self.session.closing
        if closing is None or closing.left_over is None or part.end != closing.left_over.from_index:
            return None
        return msgspec.structs.replace(part, first=part.end, end=part.end + closing.left_over.count)

    def _save_rest(self, left_over: PartRange, bundle: Path | None, report: SalvageReport) -> RestFile:
        lines: list[bytes] = []
        for line in self.items("event", self.session.frames.events, left_over, split_lines):
            if isinstance(line, Gap):
                report.lost += line.count or 0
                report.problems.append(Problem(line.reason))
            else:
                lines.append(line)
        report.left_over = len(lines)
        text = b"".join(lines)
        if bundle is not None:
            write_bytes_atomic(rest_path(bundle), text, what="events that were left over")
        return RestFile(len(text), sha256(text).hexdigest())

    def _write_manifest(
        self,
        part: PartRange,
        bundle: Path,
        report: SalvageReport,
        beside: Path | None,
        hosted: _HostedRecords | None,
        rest: RestFile | None,
    ) -> None:
        closing = self.session.closing if part.end == self.session.total else None
        counts = None if hosted is None else hosted.part.finish()
        # Digest and column cover all derived events, which are more than were kept if a decision was not proved.
        is_all_kept = counts is not None and counts.events == report.kept
        manifest = manifest_for(
            msgspec.structs.replace(self.session.description, lost=self.session.lost_until(part.part)),
            bundle,
            part=part.part,
            ended=part.ended if report.whole else "salvaged",
            forced=part.forced,
            first=part.first,
            count=report.kept,
            size=bundle.stat().st_size,
            sha256=text_sha256(bundle),
            ended_at=part.ended_at,
            beside=None if beside is None else beside.name,
            store=self._store(part),
            refused=None if counts is None else counts.refused,
            merged=counts.merged if counts is not None and is_all_kept else None,
            semantic_kinds=hosted.kinds.finish() if hosted is not None and is_all_kept else None,
            interruption=None if closing is None else closing.interruption,
            left_over=None if closing is None else closing.left_over,
            rest=rest,
        )
        text = encode_manifest(manifest, salvage=msgspec.to_builtins(report))
        write_bytes_atomic(manifest_path(bundle), text, what="manifest")

    def _store(self, part: PartRange) -> dict[str, Any] | None:
        try:
            return self.session.store_before(part)
        except ValueError:
            return None

    # --- records ---

    def _events(self, part: PartRange) -> Iterator[ExternalEventRecord | Gap]:
        if not self.session.is_described:
            yield Gap(0, "the frame that describes the session is missing")
        for event in self.items("event", self.session.frames.events, part, read_body):
            if isinstance(event, Gap):
                yield event
            else:
                self._event_id = event.event_id
                yield ExternalEventRecord.from_event(event)
        if part.uncertain:
            yield Gap(None, self.session.frames.damage or "its end is damaged")

    def _decisions(self, part: PartRange) -> Iterator[EpisodeInvocationRecord | Gap]:
        """Yield the decisions; the caller takes each right after its event, as long as all are proved."""
        deadline = self.session.description.constraints.deadline
        for outcome in self.items("decision", self.session.frames.decisions, part, read_decisions):
            if isinstance(outcome, DecisionOutcome):
                yield outcome.to_record(self._event_id, deadline)
            else:
                yield outcome if isinstance(outcome, Gap) else Gap(1, "an event is refused, and there is no adapter")

    def items(
        self, what: str, packed: array[int], part: PartRange, decode: Callable[[bytes], Iterable[_Item]]
    ) -> Iterator[_Item | Gap]:
        """Yield the events or decisions of a part, and the gaps between them."""
        expected = part.first
        for frame in self._frames(packed, part):
            first, end = frame.header.first, frame.header.first + frame.header.count
            if first > expected:
                yield _missing(what, expected, first)
                expected = first
            try:
                items = list(decode(frame.body))
                if len(items) != frame.header.count:
                    raise ValueError(f"it holds {len(items)} {what}s instead of {frame.header.count}")
            except ValueError as error:
                yield Gap(max(0, end - expected), f"{what}s from {first} on: {error}")
            else:
                yield from items[expected - first : part.end - first]
            expected = max(expected, min(part.end, end))
        # In a running part, the last events may not be decided yet.
        if expected < part.end and (what == "event" or part.ended != "open"):
            yield _missing(what, expected, part.end)

    def _frames(self, packed: array[int], part: PartRange) -> Iterator[Frame]:
        """Yield the frames that hold events or decisions of a part."""
        session = self.session
        for frame in read_frames(session.directory, map(Position.unpack, packed), session.storage):
            if frame.header.first < part.end and frame.header.first + frame.header.count > part.first:
                yield frame


class _HostedRecords:
    """The events and decisions of a part of a session with a contract.

    Payloads can be derived only up to the first missing record. After it, events are yielded as they were sent, and are
    set aside.
    """

    def __init__(self, salvage: _SessionSalvage, part: PartRange, contract: Contract) -> None:
        session = salvage.session
        #: The semantic kinds of the events that were derived.
        self.kinds = KindColumn()
        self._deadline = session.description.constraints.deadline
        #: The reason why payloads cannot be derived any more; None while they can.
        self._problem: str | None = None
        store: dict[str, Any] | None = None
        try:
            store = session.store_before(part)
        except ValueError as error:
            self._problem = str(error)
        self.part = HostedPart(contract, store, part.first)
        self._events = salvage.items("event", session.frames.events, part, self._read)
        self._outcomes = salvage.items("decision", session.frames.decisions, part, read_decisions)
        self._uncertain = (session.frames.damage or "its end is damaged") if part.uncertain else None
        #: Decisions about events that were yielded.
        self._ready: deque[EpisodeInvocationRecord | Gap] = deque()
        self._is_over = False

    def _read(self, body: bytes) -> list[tuple[ExternalEvent, HostedEvent]]:
        return list(zip(read_body(body), self.part.read(body), strict=True))

    def events(self) -> Iterator[ExternalEventRecord | Gap]:
        """Yield the events that were not refused."""
        if self._problem is not None:
            self._ready.append(Gap(0, self._problem))
        for item in self._events:
            if isinstance(item, Gap):
                self._problem = item.reason
                yield item
                continue
            record = self._record(*item)
            if record is not None:
                yield record
        if self._uncertain is not None:
            yield Gap(None, self._uncertain)
        self._is_over = True

    def _record(self, sent: ExternalEvent, hosted: HostedEvent) -> ExternalEventRecord | None:
        outcome = None if self._problem is not None else next(self._outcomes, None)
        if outcome is None or isinstance(outcome, Gap):
            self._problem = self._problem or "it is not decided"
            if outcome is not None:
                self._ready.append(outcome)
            return ExternalEventRecord.from_event(sent)
        try:
            record = self.part.derive(hosted, outcome)
        except ValueError as error:
            self._problem = str(error)
            self._ready.append(Gap(1, self._problem))
            return ExternalEventRecord.from_event(sent)
        if record is not None and isinstance(outcome, DecisionOutcome):
            self.kinds.add_kinds([hosted.semantic_kind])
            self._ready.append(outcome.to_record(record.event_id, self._deadline))
        return record

    def decisions(self) -> Iterator[EpisodeInvocationRecord | Gap]:
        """Yield the decisions; the caller takes each right after its event, and the rest after all events."""
        while self._ready or not self._is_over:
            if not self._ready:
                return
            yield self._ready.popleft()
        for outcome in self._outcomes:
            if isinstance(outcome, DecisionOutcome):
                yield outcome.to_record("", self._deadline)
            elif isinstance(outcome, Gap):
                yield outcome


def _missing(what: str, first: int, end: int) -> Gap:
    which = f"{what} {first} is" if end == first + 1 else f"{what}s {first} to {end - 1} are"
    return Gap(end - first, f"{which} missing from the journal")
