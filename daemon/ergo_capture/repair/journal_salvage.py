"""Save what can be proved of a journal, whatever its damage: a bundle for each part of each session.

A part begins with a supervisor of its own, so damage to one part takes nothing from the parts after it. A part whose
bundle is durable and still has its published digest is left alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import msgspec

from ergo_capture.bundle.catalogue import find_published
from ergo_capture.bundle.manifest import encode_manifest, manifest_for
from ergo_capture.bundle.names import bundle_name, bundle_path, bundle_stem, manifest_path, other_form, safe_name
from ergo_capture.bundle.reader.opening import text_sha256
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionOutcome, read_decisions
from ergo_capture.journal.frame import Frame, Position
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Publication
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.repair.output import SalvageOutput
from ergo_capture.repair.partial_session import PartialSession, PartRange
from ergo_capture.repair.report import Gap, SalvageReport
from ergo_capture.repair.salvage import salvage
from ergo_capture.storage import Storage
from ergo_capture.storage.atomic import write_bytes_atomic

_Item = TypeVar("_Item")


class SalvagedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one part of a session."""

    session: str
    graph: str
    part: int
    #: ``published`` where its bundle is durable and was left alone, else how the part ended: ``complete``,
    #: ``recovered``, ``interrupted``, ``rotated``, or ``open``.
    ended: str
    #: The bundle that is there, or was written; None where none was asked for.
    bundle: str | None
    #: None for a published part.
    counts: SalvageReport | None

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.counts is None or self.counts.whole

    @property
    def lossy(self) -> bool:
        """Whether something of it is lost; undecided events of a running part are not."""
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
        scan: what a scan of it found.
        storage: the filesystem.
        destination: a directory; None to count only.
        only: numbers of the sessions to salvage; None for all that are in the journal.
        on_part: called with each part as it is done.

    Raises:
        StorageError: a segment cannot be read.
        CaptureWriteError: a file could not be written.
        ErgoCaptureError: what was written does not verify.
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
        self._session = session
        #: Id of the event that was returned last; the next decision is about it.
        self._event_id = ""

    def run(self, destination: Path | None) -> Iterator[SalvagedPart]:
        """Salvage each part."""
        for part in self._session.parts():
            publication = None if part.merged else self._session.publications.get(part.part)
            if publication is not None and self._is_published(part, publication):
                yield self._published(part, publication)
            elif (standing := self._standing(part)) is not None:
                yield standing
            else:
                yield self._salvage(part, destination)

    def _is_published(self, part: PartRange, publication: Publication) -> bool:
        """Return whether the part's bundle is safe, so that the part can be skipped.

        A bundle that is gone was moved elsewhere, if the journal no longer has all of its part.
        """
        bundle = self._find(publication)
        if bundle is not None:
            return text_sha256(bundle) == publication.sha256
        return not salvage(self._session.head, self._events(part), self._decisions(part)).whole

    def _standing(self, part: PartRange) -> SalvagedPart | None:
        """Return the part as published if it is damaged and a bundle in ``bundles/`` has all of it; None otherwise.

        A snapshot may have been published before the damage.
        """
        session = self._session
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
        return find_published(Path(publication.bundle), self._session.directory.parent / "bundles")

    def _published(self, part: PartRange, publication: Publication) -> SalvagedPart:
        recorded = Path(publication.bundle)
        session = self._session
        return SalvagedPart(
            # The frames that hold the description may have been deleted with their segment.
            session=session.description.session if session.is_described else bundle_stem(recorded).partition("~")[0],
            graph=session.description.graph if session.is_described else recorded.parent.name,
            part=part.part,
            ended="published",
            bundle=str(self._find(publication) or recorded),
            counts=None,
        )

    def _salvage(self, part: PartRange, destination: Path | None) -> SalvagedPart:
        description, path = self._session.description, None
        if destination is not None:
            path = destination / safe_name(description.graph) / bundle_name(description.session, part.part)
        head, events, decisions = self._session.head, self._events(part), self._decisions(part)
        with nullcontext() if path is None else SalvageOutput(head, path, part.part) as output:
            report = salvage(head, events, decisions, output)
        if output is not None:
            path = output.destination
            if not output.stood:
                self._write_manifest(part, path, report, output.beside)
        return SalvagedPart(
            session=description.session,
            graph=description.graph,
            part=part.part,
            ended=part.ended,
            bundle=None if path is None else str(path),
            counts=report,
        )

    def _write_manifest(self, part: PartRange, bundle: Path, report: SalvageReport, beside: Path | None) -> None:
        manifest = manifest_for(
            msgspec.structs.replace(self._session.description, lost=self._session.lost_until(part.part)),
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
        )
        text = encode_manifest(manifest, salvage=msgspec.to_builtins(report))
        write_bytes_atomic(manifest_path(bundle), text, what="manifest")

    # --- records ---

    def _events(self, part: PartRange) -> Iterator[ExternalEventRecord | Gap]:
        if not self._session.is_described:
            yield Gap(0, "the frame that says what the session is, is missing")
        for event in self._items("event", self._session.frames.events, part, read_body):
            if isinstance(event, Gap):
                yield event
            else:
                self._event_id = event.event_id
                yield ExternalEventRecord.from_event(event)
        if part.uncertain:
            yield Gap(None, self._session.frames.damage or "its end is damaged")

    def _decisions(self, part: PartRange) -> Iterator[EpisodeInvocationRecord | Gap]:
        """Yield the decisions; each is asked for right after its event was returned, for as long as all is proved."""
        deadline = self._session.description.constraints.deadline
        for outcome in self._items("decision", self._session.frames.decisions, part, read_decisions):
            if isinstance(outcome, DecisionOutcome):
                yield outcome.to_record(self._event_id, deadline)
            else:
                yield outcome if isinstance(outcome, Gap) else Gap(1, f"an event was refused: {outcome.message}")

    def _items(
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
        # In a part that goes on, the last events may not be decided yet.
        if expected < part.end and (what == "event" or part.ended != "open"):
            yield _missing(what, expected, part.end)

    def _frames(self, packed: array[int], part: PartRange) -> Iterator[Frame]:
        """Yield the frames that hold events or decisions of a part."""
        session = self._session
        for frame in read_frames(session.directory, map(Position.unpack, packed), session.storage):
            if frame.header.first < part.end and frame.header.first + frame.header.count > part.first:
                yield frame


def _missing(what: str, first: int, end: int) -> Gap:
    which = f"{what} {first} is" if end == first + 1 else f"{what}s {first} to {end - 1} are"
    return Gap(end - first, f"{which} missing from the journal")
