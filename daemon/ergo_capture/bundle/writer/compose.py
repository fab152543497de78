"""Compose a bundle from a session's frames, in memory that does not grow with the session.

The bundle is written to a temporary file, which is read back and compared before it gets its name (P3).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.format import BundleHead, CaptureJsonStyle
from ergo_capture.bundle.manifest import Manifest, encode_manifest, manifest_for
from ergo_capture.bundle.names import other_form
from ergo_capture.bundle.writer.expand import DecisionTexts, expand_events
from ergo_capture.bundle.writer.sink import BundleSink, BundleWriter
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import Position
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.reader import read_frames
from ergo_capture.storage import RealStorage, Storage, directory_lock
from ergo_capture.storage.atomic import write_bytes_atomic

#: Bytes of event lines that are expanded at a time; the text is up to twelve times as long.
_BLOCK_BYTES: Final = 128 * 1024


class ComposeJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to compose; it can be sent to a worker process."""

    journal: str
    destination: str
    manifest: str
    style: str
    #: ``none`` or ``zstd``.
    compress: str = "none"
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


def compose_bundle(job: ComposeJob, storage: Storage | None = None) -> Publication:
    """Write the bundle and its manifest, durably, under their final names.

    Raises:
        CaptureWriteError: a file could not be written; the destination is as it was.
        JournalError: the journal does not hold what it should.
    """
    storage = storage or RealStorage()
    destination = Path(job.destination)
    description = job.description
    head = BundleHead(
        description.graph, description.constraints, description.adapter_provenance, description.runtime_provenance
    )
    last_event_id: str | None = None
    with BundleWriter(destination, head, style=CaptureJsonStyle(job.style), compress=job.compress) as bundle:
        for last, events, decisions in _read_part(job, storage):
            bundle.write(events, decisions)
            last_event_id = last
        bundle.finish()
        bundle.sink.read_back()
        # Published with the lock or without: another process may have been stopped while it held it.
        with directory_lock(destination.parent):
            bundle.commit()
            write_bytes_atomic(Path(job.manifest), encode_manifest(_manifest(job, bundle.sink, last_event_id)))
    # A snapshot may be there in the other form, from before a change of the configuration.
    with suppress(FileNotFoundError):
        other_form(destination).unlink()
    return Publication(job.part, job.destination, job.manifest, bundle.sink.digest)


def _manifest(job: ComposeJob, sink: BundleSink, last_event_id: str | None) -> Manifest:
    return manifest_for(
        job.description,
        Path(job.destination),
        part=job.part,
        ended=job.ended,
        forced=job.forced,
        first=job.first,
        count=job.count,
        size=sink.size,
        sha256=sink.digest,
        ended_at=job.ended_at,
        style=job.style,
        compression=job.compress,
        stored=None if job.compress == "none" else (sink.file_size, sink.file_digest),
        last_event_id=last_event_id,
    )


def _positions(packed: bytes) -> list[Position]:
    return [Position.unpack(value) for value in array("Q", packed)]


def _read_part(job: ComposeJob, storage: Storage) -> Iterator[tuple[str, bytes | bytearray, bytes]]:
    """Yield events and their decisions, a block at a time, with the last id; a comma precedes each element."""
    frames = read_frames(Path(job.journal), _positions(job.decision_frames), storage)
    decisions = DecisionTexts((frame.body for frame in frames), job.description.constraints.deadline)
    for ids, events in _read_events(job, storage):
        decided = decisions.take(ids)
        if decided is None:
            raise _missing(job, "decisions")
        yield ids[-1], events, decided


def _read_events(job: ComposeJob, storage: Storage) -> Iterator[tuple[list[str], bytes | bytearray]]:
    index, end = job.first, job.first + job.count
    for first, body in _read_bodies(job, storage):
        if first > index:
            raise _missing(job, "events")
        ids, text = expand_events(body, index - first, end - first)
        if ids:
            yield ids, text
        index += len(ids)
        if index == end:
            return
    if index != end:
        raise _missing(job, "events")


def _read_bodies(job: ComposeJob, storage: Storage) -> Iterator[tuple[int, bytes]]:
    """Yield the bodies of consecutive frames, joined to blocks, each with the index of its first event.

    With a small window a frame holds one event, and the cost of a block would count for each.
    """
    bodies: list[bytes] = []
    first = following = size = 0
    for frame in read_frames(Path(job.journal), _positions(job.event_frames), storage):
        if bodies and (size + len(frame.body) > _BLOCK_BYTES or frame.header.first != following):
            yield first, b"".join(bodies)
            bodies, size = [], 0
        if not bodies:
            first = frame.header.first
        bodies.append(frame.body)
        size += len(frame.body)
        following = frame.header.first + frame.header.count
    if bodies:
        yield first, b"".join(bodies)


def _missing(job: ComposeJob, what: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"compose bundle '{job.destination}': the journal holds fewer {what} of session "
        f"{job.description.session} than were acknowledged",
        op="compose bundle",
        path=job.destination,
        hint=f"keep '{job.journal}' as it is and run `ergo-capture doctor` on it",
    )
