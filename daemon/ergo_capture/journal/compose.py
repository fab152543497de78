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
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import msgspec
from crc32c import crc32c

from ergo_capture.capture.atomic import AtomicFile, create_parents, write_bytes_atomic
from ergo_capture.capture.bundle import CaptureJsonStyle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Publication, SessionDescription
from ergo_capture.journal.expand import DecisionTexts, expand_events
from ergo_capture.journal.reader import Position, read_frames
from ergo_capture.kernel.records import MIDDLE, encode_head, encode_tail
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM

MANIFEST_FORMAT: Final = "ergo-capture-manifest.v1"
#: Bytes read at a time.
_READ_BYTES: Final = 256 * 1024
#: Bytes of event lines that are expanded at a time; the text is up to twelve times as long.
_BLOCK_BYTES: Final = 128 * 1024
#: Blocks that may wait to be written.
_WAITING_BLOCKS: Final = 4


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
    layout = _Layout(job, CaptureJsonStyle(job.style))
    with AtomicFile(destination) as bundle, AtomicFile(destination) as decisions, _Sink(bundle) as sink:
        sink.write(layout.head)
        for event_texts, decision_texts in _blocks_of(job, storage):
            sink.write(layout.block(event_texts))
            decisions.write(layout.block(decision_texts))
            layout.began = True
        sink.write(layout.middle)
        for block in _blocks(decisions.path):
            sink.write(block)
        sink.write(layout.tail)
        sink.finish()
        decisions.abort()
        _read_back(bundle.path, sink)
        bundle.commit()
    manifest = _manifest(job, sink.size, sink.digest)
    write_bytes_atomic(Path(job.manifest), msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return Publication(job.part, job.destination, job.manifest, sink.digest)


class _Sink:
    """Writes blocks, in order, in a thread of its own; knows size, checksum and digest of all of them.

    Why a thread: hashing and writing let go of the interpreter, which meanwhile expands the next block.
    """

    def __init__(self, file: AtomicFile) -> None:
        self.size = 0
        self.checksum = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "compose")
        self._waiting: deque[Future[None]] = deque()

    @property
    def digest(self) -> str:
        """SHA-256 of everything written, in hex."""
        return self._hash.hexdigest()

    def write(self, block: bytes) -> None:
        """Queue a block; waits while too many are queued.

        Raises:
            CaptureWriteError: a block before it could not be written.
        """
        self._waiting.append(self._thread.submit(self._put, block))
        while len(self._waiting) > _WAITING_BLOCKS:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until every block is written.

        Raises:
            CaptureWriteError: one could not be.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def _put(self, block: bytes) -> None:
        self._file.write(block)
        self._hash.update(block)
        self.checksum = crc32c(block, self.checksum)
        self.size += len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


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

    def block(self, elements: list[bytes]) -> bytes:
        """Elements of one list, with the comma that parts them from those before."""
        text = b",".join(elements)
        if self._pretty:
            # Why in an object: elements stand two levels deep in a bundle.
            text = (
                msgspec.json.format(b'{"":[%b]}' % text, indent=2).removeprefix(b'{\n  "": [').removesuffix(b"\n  ]\n}")
            )
        return b"," + text if self.began else text


def _positions(packed: bytes) -> list[Position]:
    return [Position.unpack(value) for value in array("Q", packed)]


def _blocks_of(job: ComposeJob, storage: Storage) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The elements of events and of their decisions, some at a time."""
    frames = read_frames(Path(job.journal), _positions(job.decision_frames), storage)
    decisions = DecisionTexts((frame.body for frame in frames), job.description.constraints.deadline)
    for ids, events in _events(job, storage):
        texts = decisions.take(ids)
        if texts is None:
            raise _short(job, "decisions")
        yield events, texts


def _events(job: ComposeJob, storage: Storage) -> Iterator[tuple[list[str], list[bytes]]]:
    index, end = job.first, job.first + job.count
    # Why gathered: at a small window a frame holds one event, and what there is to do for each block would count.
    for first, body in _gathered(job, storage):
        if first > index:
            raise _short(job, "events")
        ids, texts = expand_events(body)
        chosen = slice(index - first, end - first)
        ids, texts = ids[chosen], texts[chosen]
        if ids:
            yield ids, texts
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


def _read_back(path: Path, written: _Sink) -> None:
    """Compare what the file holds with what was written, before it gets its name."""
    checksum = size = 0
    for block in _blocks(path):
        checksum = crc32c(block, checksum)
        size += len(block)
    if (checksum, size) != (written.checksum, written.size):
        raise ErgoCaptureError(
            f"verify bundle '{path}': what was read back is not what was written",
            op="verify bundle",
            path=path,
            hint="check the disk; the journal still holds the session",
        )


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
