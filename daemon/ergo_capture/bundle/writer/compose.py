"""Compose a bundle from a session's frames, in memory that does not grow with the session.

The bundle is written to a temporary file, which is read back and compared before it gets its name (P3).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ergo_capture.bundle.format import BundleHead, CaptureJsonStyle
from ergo_capture.bundle.manifest import (
    SNAPSHOT,
    Manifest,
    ManifestError,
    RestFile,
    encode_manifest,
    manifest_for,
    read_manifest,
)
from ergo_capture.bundle.names import index_path, manifest_path, other_form
from ergo_capture.bundle.placement import NewBundle, Place, find_place
from ergo_capture.bundle.reader.index import IndexReference
from ergo_capture.bundle.semantic_kinds import KindColumn, SemanticKinds
from ergo_capture.bundle.sequence import Sequence
from ergo_capture.bundle.statistics import StatisticsCounter
from ergo_capture.bundle.writer.elements import Elements, IdColumn
from ergo_capture.bundle.writer.expand import DecisionTexts, expand_events
from ergo_capture.bundle.writer.hosted import HostedCounts, HostedPart, outcomes_of, write_rest
from ergo_capture.bundle.writer.sink import BundleWriter
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import Frame, Position
from ergo_capture.journal.payloads import Contract, Interruption, LeftOver, Publication, SessionDescription
from ergo_capture.journal.reader import read_frames
from ergo_capture.storage import RealStorage, Storage, directory_lock
from ergo_capture.storage.atomic import put_in_place, write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage

#: The least size of a text that gets an index, in bytes: a smaller one is read quickly.
_INDEXED_BYTES: Final = 4 << 20
#: How many bytes of event lines are expanded at a time; the text is up to twelve times as long.
_BLOCK_BYTES: Final = 128 * 1024


class ComposeJob(msgspec.Struct, frozen=True, kw_only=True):
    """A part to be composed; it can be sent to a worker process."""

    journal: str
    destination: str
    style: str
    #: ``none`` or ``zstd``.
    compress: str = "none"
    description: SessionDescription
    part: int
    #: Index of the part's first event in the session.
    first: int
    #: Events of the part that are decided or refused.
    count: int
    #: Packed positions of the frames, as the bytes of an ``array("Q")``.
    event_frames: bytes
    decision_frames: bytes
    #: ``complete``, ``recovered``, ``interrupted``, ``rotated``, or ``open`` for a snapshot.
    ended: str
    #: SHA-256 of the text of this part's last snapshot that the same daemon published; empty without one.
    own: str = ""
    #: Whether the part was cut while episodes were deferred.
    forced: bool
    #: The context store at the beginning of the part; None where it is empty.
    store: dict[str, Any] | None = None
    #: The interruption of the run, and the events that are left over; ``event_frames`` hold them too.
    interruption: Interruption | None = None
    left_over: LeftOver | None = None
    #: RFC 3339 in UTC; evidence only.
    ended_at: str


class ComposedBundle(msgspec.Struct, frozen=True):
    """A bundle that is written, synced and read back, and has no final name yet; a worker process can return it."""

    job: ComposeJob
    #: The temporary file, in the destination's directory.
    file: str
    #: Size and SHA-256 of the text, and of the file.
    size: int
    sha256: str
    file_size: int
    file_sha256: str
    #: The layout of the text.
    style: str
    last_event_id: str | None
    semantic_kinds: SemanticKinds | None
    summary: dict[str, Any] | None = None
    #: The content of its index.
    index: bytes | None = None
    #: Further fields of the manifest for a session with a contract; None for any other.
    hosted: HostedCounts | None = None

    @property
    def text(self) -> NewBundle:
        """The bundle as ``find_place`` takes it."""
        return NewBundle(Path(self.file), self.size, self.sha256)


class Facts:
    """The fields of a manifest that are counted while its bundle is composed."""

    def __init__(self) -> None:
        self.last_event_id: str | None = None
        self.kinds = KindColumn()
        self.counter = StatisticsCounter()
        self.ids = IdColumn()


class PublishedBundle(NamedTuple):
    """A bundle that is durable under its name."""

    publication: Publication
    #: The finished bundle that has the wanted name; None if this one has it.
    beside: Path | None


def compose_bundle(job: ComposeJob, storage: Storage | None = None) -> ComposedBundle:
    """Write the bundle, durably, under a temporary name.

    Raises:
        CaptureWriteError: a file could not be written; nothing is left of it.
        JournalError: the journal does not hold what it should.
    """
    storage = storage or RealStorage()
    head = head_of(job.description)
    style = style_of(job)
    facts = Facts()
    hosted = None if job.description.contract is None else _hosted_part(job, job.description.contract, storage, facts)
    with BundleWriter(Path(job.destination), head, style=CaptureJsonStyle(style), compress=job.compress) as bundle:
        blocks = _read_part(job, storage, facts) if hosted is None else _derive_part(job, storage, facts, hosted)
        for last, events, decisions in blocks:
            bundle.write(events, decisions)
            facts.last_event_id = last
        composed = finish_bundle(bundle, job, style, facts)
    return composed if hosted is None else msgspec.structs.replace(composed, hosted=hosted.finish())


def head_of(description: SessionDescription) -> BundleHead:
    """Return the head of a session's bundles."""
    return BundleHead(
        description.graph,
        description.constraints,
        description.adapter_provenance,
        description.runtime_provenance,
        description.egress_provenance,
    )


def finish_bundle(bundle: BundleWriter, job: ComposeJob, style: str, facts: Facts) -> ComposedBundle:
    """End a bundle that holds all its events and decisions: sync it, and read it back.

    Raises:
        CaptureWriteError: a file could not be written.
        ErgoCaptureError: the text that was read back is not the one that was written.
    """
    bundle.finish()
    sink = bundle.sink
    sink.read_back()
    file = bundle.file.leave()
    pieces = bundle.index(facts.ids.finish()) if sink.size >= _INDEXED_BYTES else None
    return ComposedBundle(
        job,
        str(file),
        sink.size,
        sink.digest,
        sink.file_size,
        sink.file_digest,
        style,
        facts.last_event_id,
        facts.kinds.finish(),
        facts.counter.summary(job.description.constraints),
        None if pieces is None else msgspec.json.encode(pieces) + b"\n",
    )


def publish_bundle(composed: ComposedBundle, sequence: Sequence | None = None) -> PublishedBundle:
    """Give a composed bundle and its manifest their names, durably.

    A finished bundle of that name is not replaced (``placement.py``). If it has the same text, it and its manifest stay
    as they are; if not, the new bundle gets another name beside it.

    Args:
        composed: the bundle.
        sequence: numbers the finished bundles; None for no number. No other thread may use it meanwhile.

    Raises:
        CaptureWriteError: a file could not be written; the temporary file is gone.
    """
    job, temporary = composed.job, Path(composed.file)
    wanted = Path(job.destination)
    try:
        # Publish even without the lock: another process may have been stopped while it held it.
        with directory_lock(wanted.parent):
            place = find_place(wanted, job.part, composed.text, own=job.own)
            bundle, manifest = place.bundle, place.standing
            if manifest is None:
                # Write it before the manifest, which counts its events.
                rest = _write_rest(job, bundle)
                put_in_place(temporary, bundle)
                reference = _write_index(composed, bundle)
                manifest = _write_manifest(composed, place, sequence, reference, rest)
    finally:
        with suppress(OSError):
            temporary.unlink()
    if place.standing is None:
        # Remove a snapshot in the other form, from before a change of the configuration.
        with suppress(FileNotFoundError):
            other_form(bundle).unlink()
    publication = Publication(
        job.part, str(bundle), str(manifest_path(bundle)), composed.sha256, sequence=manifest.sequence
    )
    return PublishedBundle(publication, place.beside)


def style_of(job: ComposeJob) -> str:
    """Return the layout: that of an existing bundle of this name, so that the texts can be compared; else the job's."""
    try:
        manifest = read_manifest(manifest_path(Path(job.destination)))
    except (ManifestError, OSError):
        return job.style
    is_own = manifest.session == job.description.session and manifest.part == job.part
    known = {style.value for style in CaptureJsonStyle}
    return manifest.style if is_own and manifest.sha256 != job.own and manifest.style in known else job.style


def _write_index(composed: ComposedBundle, bundle: Path) -> IndexReference | None:
    """Write the index durably beside the bundle; if there is none, remove that of an earlier snapshot."""
    path = index_path(bundle)
    if composed.index is None:
        with suppress(OSError):
            path.unlink()
        return None
    write_bytes_atomic(path, composed.index, what="index")
    return IndexReference(len(composed.index), sha256(composed.index).hexdigest())


def _write_manifest(
    composed: ComposedBundle,
    place: Place,
    sequence: Sequence | None,
    index: IndexReference | None,
    rest: RestFile | None,
) -> Manifest:
    job, hosted = composed.job, composed.hosted
    number = None if sequence is None or job.ended == SNAPSHOT else sequence.greatest + 1
    manifest = manifest_for(
        job.description,
        place.bundle,
        part=job.part,
        ended=job.ended,
        forced=job.forced,
        first=job.first,
        count=job.count if hosted is None else hosted.events,
        size=composed.size,
        sha256=composed.sha256,
        ended_at=job.ended_at,
        style=composed.style,
        compression=job.compress,
        stored=None if job.compress == "none" else (composed.file_size, composed.file_sha256),
        last_event_id=composed.last_event_id,
        sequence=number,
        beside=None if place.beside is None else place.beside.name,
        semantic_kinds=composed.semantic_kinds,
        merged=None if hosted is None else hosted.merged,
        store=job.store,
        refused=None if hosted is None else hosted.refused,
        interruption=job.interruption,
        left_over=job.left_over,
        rest=rest,
        summary=composed.summary,
        index=index,
    )
    try:
        write_bytes_atomic(manifest_path(place.bundle), encode_manifest(manifest), what="manifest")
    except CaptureWriteError as error:
        # The manifest has its final name by then, so the number is used.
        if sequence is not None and number is not None and error.stage is WriteStage.SYNC_DIRECTORY:
            sequence.greatest = number
        raise
    if sequence is not None and number is not None:
        sequence.greatest = number
    return manifest


def _positions(packed: bytes) -> list[Position]:
    return [Position.unpack(value) for value in array("Q", packed)]


def _read_part(job: ComposeJob, storage: Storage, facts: Facts) -> Iterator[tuple[str, Elements, Elements]]:
    """Yield events and their decisions, several at a time, with the last id."""
    frames = read_frames(Path(job.journal), _positions(job.decision_frames), storage)
    bodies = (frame.body for frame in frames)
    decisions = DecisionTexts(bodies, job.description.constraints.deadline, facts.counter)
    events_read = read_frames(Path(job.journal), _positions(job.event_frames), storage)
    for ids, events in read_events(job, events_read, facts):
        decided = decisions.take(ids)
        if decided is None:
            raise missing(job, "decisions")
        yield ids[-1], events, decided


def _hosted_part(job: ComposeJob, contract: Contract, storage: Storage, facts: Facts) -> HostedPart:
    frames = read_frames(Path(job.journal), _positions(job.decision_frames), storage)
    outcomes = outcomes_of(frame.body for frame in frames)
    return HostedPart(contract, job.store, job.first, outcomes, job.description.constraints.deadline, facts.counter)


def _derive_part(
    job: ComposeJob, storage: Storage, facts: Facts, part: HostedPart
) -> Iterator[tuple[str, Elements, Elements]]:
    """Yield the same as ``_read_part`` for a session with a contract."""
    index, end = job.first, job.first + job.count
    frames = read_frames(Path(job.journal), _positions(job.event_frames), storage)
    for first, body, count in _read_bodies(frames):
        if first > index:
            break
        found = part.take(body, index - first, min(count, end - first))
        if found is None:
            raise missing(job, "decisions")
        facts.kinds.add_kinds(found.semantic_kinds)
        facts.ids.add(found.ids)
        if found.ids:
            yield found.ids[-1], found.events, found.decisions
        index = min(first + count, end)
        if index == end:
            return
    if index != end:
        raise missing(job, "events")


def _write_rest(job: ComposeJob, bundle: Path) -> RestFile | None:
    if job.left_over is None:
        return None
    frames = read_frames(Path(job.journal), _positions(job.event_frames), RealStorage())
    bodies = ((frame.header.first, frame.body) for frame in frames)
    return write_rest(bundle, bodies, job.left_over.from_index, job.left_over.count)


def read_events(
    job: ComposeJob, frames: Iterator[Frame], facts: Facts, number: int = 0
) -> Iterator[tuple[list[str], Elements]]:
    """Yield the ids and elements of the job's events, several at a time.

    Args:
        job: the part.
        frames: EVENTS frames that hold its events, in order.
        facts: counts the events for the manifest.
        number: the place in the bundle of the first event.

    Raises:
        ErgoCaptureError: there are fewer events.
    """
    index, end = job.first, job.first + job.count
    for first, body, count in _read_bodies(frames):
        if first > index:
            raise missing(job, "events")
        ids, events = expand_events(body, index - first, end - first, facts.counter, number + index - job.first)
        facts.kinds.add(body, count, index - first, end - first)
        facts.ids.add(ids)
        if ids:
            yield ids, events
        index += len(ids)
        if index == end:
            return
    if index != end:
        raise missing(job, "events")


def _read_bodies(frames: Iterator[Frame]) -> Iterator[tuple[int, bytes, int]]:
    """Yield the bodies of consecutive frames, joined to blocks, each with the index of its first event and its count.

    A client with a small window sends frames of one event each; joining them saves the cost of a block for each.
    """
    bodies: list[bytes] = []
    first = following = size = 0
    for frame in frames:
        if bodies and (size + len(frame.body) > _BLOCK_BYTES or frame.header.first != following):
            yield first, b"".join(bodies), following - first
            bodies, size = [], 0
        if not bodies:
            first = frame.header.first
        bodies.append(frame.body)
        size += len(frame.body)
        following = frame.header.first + frame.header.count
    if bodies:
        yield first, b"".join(bodies), following - first


def missing(job: ComposeJob, what: str) -> ErgoCaptureError:
    """Return the error for a journal that holds less than was acknowledged."""
    return ErgoCaptureError(
        f"compose bundle '{job.destination}': the journal holds fewer {what} of session "
        f"{job.description.session} than were acknowledged",
        op="compose bundle",
        path=job.destination,
        hint=f"keep '{job.journal}' as it is and run `ergo-capture doctor` on it",
    )
