"""Saves what can be proved of a journal, whatever happened to it: a bundle for each part of each session.

A part begins with a supervisor of its own, so damage to one part takes nothing from the parts after it. A part whose
bundle is durable and still what was published is left as it is.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.manifest import MANIFEST_FORMAT, Manifest
from ergo_capture.bundle.names import bundle_name, bundle_stem, manifest_path, other_form, safe_name
from ergo_capture.bundle.reader.opening import open_binary
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import read_decisions
from ergo_capture.journal.frame import Frame, Position
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Publication
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.repair.partial_session import PartialSession, PartRange
from ergo_capture.repair.report import LOST, Gap, SalvageReport
from ergo_capture.repair.salvage import salvage
from ergo_capture.storage import Storage
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.version import PROGRAM

_READ_BYTES: Final = 1 << 20


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
        """Whether something of it is gone; events of a running part that were not decided yet are not."""
        return not (self.whole or (self.ended == "open" and self.counts is not None and self.counts.only_undecided))


def salvage_journal(
    directory: Path,
    scan: ScanReport,
    storage: Storage,
    destination: Path | None,
    *,
    on_part: Callable[[SalvagedPart], None] = lambda _part: None,
) -> list[SalvagedPart]:
    """Write a bundle for each part that is not published below ``destination``; without one, only count.

    Raises:
        StorageError: a segment cannot be read.
        CaptureWriteError: a file could not be written.
        ErgoCaptureError: what was written does not verify.
    """
    parts = []
    for number in sorted(scan.sessions):
        remains = PartialSession(directory, scan, scan.sessions[number], storage)
        for part in _Saving(directory, remains, storage).parts(destination):
            parts.append(part)
            on_part(part)
    return parts


class _Saving:
    """Saves what remains of one session."""

    def __init__(self, directory: Path, remains: PartialSession, storage: Storage) -> None:
        self._directory = directory
        self._remains = remains
        self._storage = storage
        #: Id of the event that was handed out last: the next decision is about it.
        self._event_id = ""

    # --- its parts ---

    def parts(self, destination: Path | None) -> Iterator[SalvagedPart]:
        """Each part, salvaged."""
        for stretch in self._remains.stretches():
            publication = None if stretch.merged else self._remains.publications.get(stretch.part)
            if publication is None or not self._is_settled(stretch, publication):
                yield self._salvaged(stretch, destination)
            else:
                yield self._published(stretch, publication)

    def _is_settled(self, stretch: PartRange, publication: Publication) -> bool:
        """Whether a published part is nothing to be saved.

        Why it is where the bundle is gone and the journal no longer has all of it: somebody moved it elsewhere.
        """
        bundle = _published_as(publication, self._directory)
        if bundle is not None:
            return sha256_of(bundle) == publication.sha256
        return not salvage(self._remains.head, self._events(stretch), self._decisions(stretch), None).whole

    def _published(self, stretch: PartRange, publication: Publication) -> SalvagedPart:
        bundle = _published_as(publication, self._directory)
        recorded = Path(publication.bundle)
        known = self._remains.description is not None
        return SalvagedPart(
            # Why from the path: what says what the session was may be gone with its segment.
            session=self._remains.name if known else bundle_stem(recorded).partition("~")[0],
            graph=self._remains.graph if known else recorded.parent.name,
            part=stretch.part,
            ended="published",
            bundle=str(recorded if bundle is None else bundle),
            counts=None,
        )

    def _salvaged(self, stretch: PartRange, destination: Path | None) -> SalvagedPart:
        path = None
        if destination is not None:
            path = destination / safe_name(self._remains.graph) / bundle_name(self._remains.name, stretch.part)
        counts = salvage(self._remains.head, self._events(stretch), self._decisions(stretch), path)
        if path is not None:
            self._write_manifest(stretch, path, counts)
        return SalvagedPart(
            session=self._remains.name,
            graph=self._remains.graph,
            part=stretch.part,
            ended=stretch.ended,
            bundle=None if path is None else str(path),
            counts=counts,
        )

    # --- its records ---

    def _events(self, stretch: PartRange) -> Iterator[ExternalEventRecord | Gap]:
        expected = stretch.first
        if self._remains.description is None:
            yield Gap(0, "the frame that says what the session is, is missing")
        for frame in self._frames_of(self._remains.frames.events, stretch):
            header = frame.header
            if header.first > expected:
                yield _gap("event", expected, header.first)
                expected = header.first
            try:
                events = list(read_body(frame.body))
                if len(events) != header.count:
                    raise ValueError(f"it holds {len(events)} events instead of {header.count}")
            except ValueError as error:
                yield Gap(max(0, header.first + header.count - expected), f"events from {header.first} on: {error}")
            else:
                for event in events[expected - header.first : stretch.end - header.first]:
                    self._event_id = event.event_id
                    yield ExternalEventRecord.from_event(event)
            expected = max(expected, min(stretch.end, header.first + header.count))
        if expected < stretch.end:
            yield _gap("event", expected, stretch.end)
        if stretch.uncertain:
            yield Gap(None, self._remains.frames.damage or "its end is damaged")

    def _decisions(self, stretch: PartRange) -> Iterator[EpisodeInvocationRecord | Gap]:
        """Each decision is asked for right after its event was handed out, for as long as all is proved."""
        expected = stretch.first
        deadline = None if self._remains.description is None else self._remains.description.constraints.deadline
        for frame in self._frames_of(self._remains.frames.decisions, stretch):
            header = frame.header
            if header.first > expected:
                yield _gap("decision", expected, header.first)
                expected = header.first
            try:
                outcomes = list(read_decisions(frame.body))
            except ValueError as error:
                yield Gap(max(0, header.first + header.count - expected), f"decisions from {header.first} on: {error}")
            else:
                for outcome in outcomes[expected - header.first : stretch.end - header.first]:
                    yield outcome.to_record(self._event_id, deadline)
            expected = max(expected, min(stretch.end, header.first + header.count))
        # Why only then: in a part that goes on, events may be without a decision yet.
        if stretch.ended != "open" and expected < stretch.end:
            yield _gap("decision", expected, stretch.end)

    def _frames_of(self, packed: array[int], stretch: PartRange) -> Iterator[Frame]:
        """The frames that hold records of a part."""
        for frame in read_frames(self._directory, map(Position.unpack, packed), self._storage):
            header = frame.header
            if header.first < stretch.end and header.first + header.count > stretch.first:
                yield frame

    def _write_manifest(self, stretch: PartRange, bundle: Path, counts: SalvageReport) -> None:
        description, head = self._remains.description, self._remains.head
        manifest = Manifest(
            format=MANIFEST_FORMAT,
            session=self._remains.name,
            graph=self._remains.graph,
            part=stretch.part,
            ended=stretch.ended if counts.whole else "salvaged",
            forced=stretch.forced,
            first_event=stretch.first,
            events=counts.kept,
            decisions=counts.kept,
            bundle=bundle.name,
            bytes=bundle.stat().st_size,
            sha256=sha256_of(bundle),
            style="compact",
            labels={} if description is None else description.labels,
            peer=None if description is None else description.peer,
            engine=LOST if description is None else description.engine,
            adapter_provenance=head.adapter_provenance,
            runtime_provenance=head.runtime_provenance,
            opened_at="" if description is None else description.opened_at,
            ended_at=stretch.ended_at,
            program=PROGRAM,
        )
        text = msgspec.json.encode(msgspec.to_builtins(manifest) | {"salvage": msgspec.to_builtins(counts)})
        write_bytes_atomic(manifest_path(bundle), msgspec.json.format(text, indent=2) + b"\n")


def _gap(what: str, first: int, end: int) -> Gap:
    missing = f"{what} {first} is" if end == first + 1 else f"{what}s {first} to {end - 1} are"
    return Gap(end - first, f"{missing} missing from the journal")


def _published_as(publication: Publication, journal: Path) -> Path | None:
    """The published bundle, where it was published or where its state directory is now, if it is there."""
    recorded = Path(publication.bundle)
    for path in (recorded, journal.parent / "bundles" / recorded.parent.name / recorded.name):
        for form in (path, other_form(path)):
            if form.is_file():
                return form
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a bundle's text, in hex, whether the file is compressed or not.

    Raises:
        ErgoCaptureError: it cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with open_binary(path) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise ErgoCaptureError(
            f"read '{path}': {error.strerror}",
            op="recover",
            path=path,
            hint="check that you may read it, or move it out of the way",
        ) from error
