"""Composes a bundle from a session's frames, streaming: memory does not grow with the session.

Owns: ComposeJob, ``compose_bundle``, the manifest.
Not here: when a bundle is published and by which process (``server/publisher.py``), the atomic file
(``capture/atomic.py``), each record's text (``kernel/records.py``).

Events stand before decisions in a bundle, while the journal has them side by side. So one pass writes the
events to the bundle's temporary and the decisions to a second one, which is then copied behind the first.
What was written is read back and compared before it gets its name (P3).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from crc32c import crc32c

from ergo_capture.capture.atomic import AtomicFile, create_parents, write_bytes_atomic
from ergo_capture.capture.bundle import CaptureJsonStyle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import DecisionOutcome, Publication, SessionDescription, read_decisions
from ergo_capture.journal.journal import Position, read_frames
from ergo_capture.journal.lines import read_body
from ergo_capture.kernel.records import (
    MIDDLE,
    ExternalEventRecord,
    encode_decision,
    encode_event,
    encode_head,
    encode_tail,
)
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM

MANIFEST_FORMAT: Final = "ergo-capture-manifest.v1"
#: Bytes gathered before they are written.
_WRITE_BYTES: Final = 256 * 1024


class ComposeJob(msgspec.Struct, frozen=True, kw_only=True):
    """All that composing needs; goes to a worker process as it is."""

    journal: str
    destination: str
    manifest: str
    style: str
    description: SessionDescription
    part: int
    #: Index of the part's first event in the session.
    first: int
    #: Events, and decisions, of the part.
    count: int
    #: Packed positions of the frames, as the bytes of an ``array("Q")``.
    event_frames: bytes
    decision_frames: bytes
    #: ``complete``, ``recovered``, ``interrupted``, ``rotated``, or ``open`` for a snapshot.
    ended: str
    #: Whether the part was cut while episodes were deferred.
    forced: bool
    #: RFC 3339 in UTC; evidence only.
    ended_at: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside a bundle: what the bundle itself has no room for."""

    format: str
    session: str
    graph: str
    part: int
    ended: str
    forced: bool
    first_event: int
    events: int
    decisions: int
    bundle: str
    bytes: int
    sha256: str
    style: str
    labels: dict[str, str]
    peer: object
    engine: str
    adapter_provenance: str
    runtime_provenance: str
    opened_at: str
    ended_at: str
    program: str


def compose_bundle(job: ComposeJob, storage: Storage | None = None) -> Publication:
    """Write the bundle and its manifest, durably, under their final names.

    Raises:
        CaptureWriteError: a file could not be written; the destination is as it was.
        JournalError: the journal does not hold what it should.
    """
    storage = storage or RealStorage()
    destination = Path(job.destination)
    create_parents(destination)
    style = CaptureJsonStyle(job.style)
    with AtomicFile(destination) as bundle, AtomicFile(destination) as decisions:
        frame = _Layout(job, style)
        written = _Checked(bundle)
        spool = _Checked(decisions)
        written.write(frame.head)
        for event, decision in frame.elements(storage):
            written.write(event)
            spool.write(decision)
        written.write(frame.middle)
        spool.flush()
        for block in _blocks(decisions.path):
            written.write(block)
        written.write(frame.tail)
        written.flush()
        decisions.abort()
        digest = _read_back(bundle.path, written)
        bundle.commit()
    manifest = _manifest(job, written.size, digest)
    write_bytes_atomic(Path(job.manifest), msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return Publication(job.part, job.destination, job.manifest, digest)


class _Checked:
    """Gathers small writes into large ones, and knows size and checksum of all of them."""

    def __init__(self, file: AtomicFile) -> None:
        self.size = 0
        self.checksum = 0
        self._file = file
        self._parts: list[bytes] = []
        self._waiting = 0

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._waiting = 0
        self.checksum = crc32c(data, self.checksum)
        self.size += len(data)
        self._file.write(data)


class _Layout:
    """The text around and between the elements, in either style."""

    def __init__(self, job: ComposeJob, style: CaptureJsonStyle) -> None:
        description = job.description
        self._job = job
        self._pretty = style is CaptureJsonStyle.Pretty
        head = encode_head(description.graph, description.constraints)
        tail = encode_tail(description.adapter_provenance, description.runtime_provenance)
        if not self._pretty:
            self.head, self.middle, self.tail = head, MIDDLE, tail + b"\n"
            return
        text = msgspec.json.format(head + MIDDLE + tail, indent=2)
        # Why this is safe: quotes inside strings are escaped, so neither key can stand in one.
        before, rest = text.split(b'"events": []', 1)
        between, after = rest.split(b'"decisions": []', 1)
        opened, closed = (b"[", b"\n  ]") if job.count else (b"[", b"]")
        self.head = before + b'"events": ' + opened
        self.middle = closed + between + b'"decisions": ' + opened
        self.tail = closed + after + b"\n"

    def elements(self, storage: Storage) -> Iterator[tuple[bytes, bytes]]:
        """Each event's text with its decision's, separators included."""
        job = self._job
        outcomes = _outcomes(job, storage)
        deadline = job.description.constraints.deadline
        separator = self._separator(b"")
        for record in _events(job, storage):
            outcome = next(outcomes, None)
            if outcome is None:
                raise _short(job, "decisions")
            event = encode_event(record)
            decision = encode_decision(outcome.to_record(record.event_id, deadline))
            if self._pretty:
                event, decision = _indent(event), _indent(decision)
            yield separator + event, separator + decision
            separator = self._separator(b",")

    def _separator(self, comma: bytes) -> bytes:
        return comma + b"\n    " if self._pretty else comma


def _indent(text: bytes) -> bytes:
    # Why replacing is enough: a newline inside a string is escaped.
    return msgspec.json.format(text, indent=2).replace(b"\n", b"\n    ")


def _positions(packed: bytes) -> list[Position]:
    return [Position.unpack(value) for value in array("Q", packed)]


def _events(job: ComposeJob, storage: Storage) -> Iterator[ExternalEventRecord]:
    index, end = job.first, job.first + job.count
    for frame in read_frames(Path(job.journal), _positions(job.event_frames), storage):
        if frame.header.first > index:
            raise _short(job, "events")
        for event in islice(read_body(frame.body), index - frame.header.first, None):
            if index == end:
                return
            yield ExternalEventRecord.from_event(event)
            index += 1
    if index != end:
        raise _short(job, "events")


def _outcomes(job: ComposeJob, storage: Storage) -> Iterator[DecisionOutcome]:
    for frame in read_frames(Path(job.journal), _positions(job.decision_frames), storage):
        yield from read_decisions(frame.body)


def _short(job: ComposeJob, what: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"compose bundle '{job.destination}': the journal holds fewer {what} of session "
        f"{job.description.session} than were acknowledged",
        op="compose bundle",
        path=job.destination,
        hint=f"keep '{job.journal}' as it is and run `ergo-capture doctor` on it",
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_WRITE_BYTES):
            yield block


def _read_back(path: Path, written: _Checked) -> str:
    """The SHA-256 of what the file holds, once that is known to be what was written."""
    digest, checksum, size = hashlib.sha256(), 0, 0
    for block in _blocks(path):
        digest.update(block)
        checksum = crc32c(block, checksum)
        size += len(block)
    if (checksum, size) != (written.checksum, written.size):
        raise ErgoCaptureError(
            f"verify bundle '{path}': what was read back is not what was written",
            op="verify bundle",
            path=path,
            hint="check the disk; the journal still holds the session",
        )
    return digest.hexdigest()


def _manifest(job: ComposeJob, size: int, digest: str) -> Manifest:
    description = job.description
    return Manifest(
        format=MANIFEST_FORMAT,
        session=description.session,
        graph=description.graph,
        part=job.part,
        ended=job.ended,
        forced=job.forced,
        first_event=job.first,
        events=job.count,
        decisions=job.count,
        bundle=Path(job.destination).name,
        bytes=size,
        sha256=digest,
        style=job.style,
        labels=description.labels,
        peer=description.peer,
        engine=description.engine,
        adapter_provenance=description.adapter_provenance,
        runtime_provenance=description.runtime_provenance,
        opened_at=description.opened_at,
        ended_at=job.ended_at,
        program=PROGRAM,
    )
