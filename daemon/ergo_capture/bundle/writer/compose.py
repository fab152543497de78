"""Composes a bundle from a session's frames, streaming: memory does not grow with the session.

Events stand before decisions in a bundle, while the journal has them side by side. So one pass writes the
events to the bundle's temporary and the decisions to a second one, which is then copied behind the first.
What was written is read back and compared before it gets its name (P3).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.bundle.manifest import MANIFEST_FORMAT, Manifest, encode_manifest
from ergo_capture.bundle.names import other_form
from ergo_capture.bundle.writer.expand import DecisionTexts, expand_events
from ergo_capture.bundle.writer.sink import BundleSink
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import Position
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.reader import read_frames
from ergo_capture.kernel.records import MIDDLE, encode_head, encode_tail
from ergo_capture.storage import RealStorage, Storage, directory_lock
from ergo_capture.storage.atomic import AtomicFile, create_parents, write_bytes_atomic
from ergo_capture.version import PROGRAM

#: Bytes read at a time.
_READ_BYTES: Final = 256 * 1024
#: Bytes of event lines that are expanded at a time; the text is up to twelve times as long.
_BLOCK_BYTES: Final = 128 * 1024


class ComposeJob(msgspec.Struct, frozen=True, kw_only=True):
    """All that composing needs; goes to a worker process as it is."""

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
    create_parents(destination)
    layout = _Layout(job, CaptureJsonStyle(job.style))
    with (
        AtomicFile(destination) as bundle,
        AtomicFile(destination) as decisions,
        BundleSink(bundle, job.compress) as sink,
    ):
        sink.write(layout.head)
        for events_text, decisions_text in _blocks_of(job, storage):
            sink.write(layout.block(events_text))
            decisions.write(layout.block(decisions_text))
            layout.began = True
        sink.write(layout.middle)
        for block in _blocks(decisions.path):
            sink.write(block)
        sink.write(layout.tail)
        sink.finish()
        decisions.abort()
        sink.read_back()
        # Why whether it is or not: it may only be that somebody who deletes old bundles was stopped in the midst of it.
        with directory_lock(destination.parent):
            bundle.commit()
            write_bytes_atomic(Path(job.manifest), encode_manifest(_manifest(job, sink)))
    # Why: a snapshot may be there in the other form, if the configuration was changed meanwhile.
    with suppress(FileNotFoundError):
        other_form(destination).unlink()
    return Publication(job.part, job.destination, job.manifest, sink.digest)


class _Layout:
    """The text around and between the elements, in either style."""

    def __init__(self, job: ComposeJob, style: CaptureJsonStyle) -> None:
        description = job.description
        #: Whether an element was written to each of the two lists already.
        self.began = False
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
        closed = b"\n  ]" if job.count else b"]"
        self.head = before + b'"events": ['
        self.middle = closed + between + b'"decisions": ['
        self.tail = closed + after + b"\n"

    def block(self, text: bytes | bytearray) -> bytes | bytearray:
        """Elements of one list, each behind a comma, as they are to stand in the bundle."""
        if self._pretty:
            # Why in an object: elements stand two levels deep in a bundle.
            within = msgspec.json.format(b'{"":[%b]}' % bytes(text[1:]), indent=2)
            text = b"," + within.removeprefix(b'{\n  "": [').removesuffix(b"\n  ]\n}")
        return text if self.began else text[1:]


def _positions(packed: bytes) -> list[Position]:
    return [Position.unpack(value) for value in array("Q", packed)]


def _blocks_of(job: ComposeJob, storage: Storage) -> Iterator[tuple[bytes | bytearray, bytes]]:
    """The elements of events and of their decisions, some at a time."""
    frames = read_frames(Path(job.journal), _positions(job.decision_frames), storage)
    decisions = DecisionTexts((frame.body for frame in frames), job.description.constraints.deadline)
    for ids, events in _events(job, storage):
        decided = decisions.take(ids)
        if decided is None:
            raise _short(job, "decisions")
        yield events, decided


def _events(job: ComposeJob, storage: Storage) -> Iterator[tuple[list[str], bytes | bytearray]]:
    index, end = job.first, job.first + job.count
    # Why gathered: at a small window a frame holds one event, and what there is to do for each block would count.
    for first, body in _gathered(job, storage):
        if first > index:
            raise _short(job, "events")
        ids, text = expand_events(body, index - first, end - first)
        if ids:
            yield ids, text
        index += len(ids)
        if index == end:
            return
    if index != end:
        raise _short(job, "events")


def _gathered(job: ComposeJob, storage: Storage) -> Iterator[tuple[int, bytes]]:
    """Bodies of frames that follow each other, joined to blocks, with the index of each block's first event."""
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
        while block := file.read(_READ_BYTES):
            yield block


def _manifest(job: ComposeJob, sink: BundleSink) -> Manifest:
    description = job.description
    compressed = job.compress != "none"
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
        bytes=sink.size,
        sha256=sink.digest,
        compression=job.compress,
        file_bytes=sink.file_size if compressed else None,
        file_sha256=sink.file_digest if compressed else None,
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
