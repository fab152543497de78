"""Journals of tests: writing and damaging them, reporting what is in them, and composing their bundles."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from ergo_capture.bundle.writer.compose import ComposeJob, compose_bundle, publish_bundle
from ergo_capture.journal.frame import FrameKind, Header, PendingFrame, Position, decode_header
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.recovery import PendingPublication, RecoveredSession, Recovery, recover
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.journal.segment import segment_path
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage, Storage

SEGMENT_BYTES = 4096


def opening(session: int) -> PendingFrame:
    """Return the first frame of a session."""
    return PendingFrame(FrameKind.OPEN, session, 0, 0, b'{"session":"s%d"}' % session)


def events(session: int, first: int, count: int = 1, size: int = 40) -> PendingFrame:
    """Return a frame of events; its body names the session and the events."""
    body = b"".join(b'{"event_id":"%d/%d","pad":"%s"}\n' % (session, first + n, b"x" * size) for n in range(count))
    return PendingFrame(FrameKind.EVENTS, session, first, count, body)


def decisions(session: int, first: int, count: int = 1) -> PendingFrame:
    """Return a frame of decisions."""
    return PendingFrame(FrameKind.DECISIONS, session, first, count, b"[[0,%d,%d]]" % (first, count))


def rotation(session: int, first: int) -> PendingFrame:
    """Return the frame that ends a part at event ``first``."""
    return PendingFrame(FrameKind.ROTATE, session, first, 0, b'{"part":1}')


def closing(session: int, total: int) -> PendingFrame:
    """Return the frame that ends a session of so many events."""
    return PendingFrame(FrameKind.CLOSE, session, total, 0, b'{"ended":"complete"}')


def publication(session: int, *, final: bool = True) -> PendingFrame:
    """Return the frame that says that a bundle is durable."""
    return PendingFrame(FrameKind.PUBLISHED, session, 1, int(final), b'{"part":1}')


def journal_in(directory: Path, storage: Storage | None = None, *, segment_bytes: int = SEGMENT_BYTES) -> Journal:
    """Open a journal with small segments."""
    journal, _ = Journal.open(directory, storage or RealStorage(), segment_bytes=segment_bytes, program="test 1")
    return journal


def write_batches(directory: Path, batches: Sequence[Sequence[PendingFrame]], *, seal: bool = False) -> list[Position]:
    """Commit batches and close the journal, with a seal or without; return the frames' positions."""
    journal = journal_in(directory)
    positions = [position for batch in batches for position in journal.commit(batch)]
    if seal:
        journal.seal()
    journal.close()
    return positions


def three_segments(directory: Path) -> list[Position]:
    """Write three segments with two sessions that both go on to the end; the last segment holds four batches."""
    journal = journal_in(directory)
    positions = journal.commit([opening(1), opening(2)])
    index = 0
    while journal.current_segment < 3:
        positions += journal.commit([events(1, index, 3), events(2, index), decisions(1, index, 3)])
        index += 3
        positions += journal.commit([events(2, index - 2, 2), decisions(2, index - 3, 3)])
    for _ in range(2):
        positions += journal.commit([events(1, index), events(2, index)])
        positions += journal.commit([decisions(1, index), decisions(2, index)])
        index += 1
    journal.close()
    for name in [path.name for path in directory.iterdir()]:
        shrink(directory / name)
    return positions


def shrink(path: Path) -> None:
    """Cut off the preallocated zeros after the last frame."""
    data = path.read_bytes()
    path.write_bytes(data[: frames_of(path)[-1][1] + frames_of(path)[-1][0].size])


def frames_of(path: Path) -> list[tuple[Header, int]]:
    """Return the headers of a segment without damage, with their offsets."""
    return list(_walk(path.read_bytes(), int(path.name[:16])))


def _walk(data: bytes, sequence: int) -> Iterator[tuple[Header, int]]:
    offset = 0
    while (header := decode_header(data[offset : offset + 64], sequence)) is not None:
        yield header, offset
        offset += header.size


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def look(directory: Path) -> ScanReport:
    """Scan without repairing."""
    return scan(directory, RealStorage())


def recovered(directory: Path) -> Recovery:
    """Return what a start finds in a journal."""
    return recover(directory, look(directory), RealStorage())


def the_session(directory: Path) -> RecoveredSession:
    """Return the one session of a journal; it is not quarantined."""
    found = recovered(directory)
    assert found.reasons == {}
    (session,) = found.sessions
    return session


def found_frames(directory: Path, found: ScanReport) -> set[Position]:
    """Return the positions of all frames of sessions in a scan report."""
    positions: set[Position] = set()
    for session in found.sessions.values():
        positions |= {Position.unpack(packed) for packed in (*session.events, *session.decisions)}
        positions |= {*session.rotations, *session.published}
        positions |= {position for position in (session.open, session.close) if position is not None}
    list(read_frames(directory, sorted(positions), RealStorage()))
    return positions


def damaged(found: ScanReport) -> list[int]:
    """Return the numbers of the damaged sessions."""
    return sorted(number for number, session in found.sessions.items() if session.damage is not None)


def last_segment(directory: Path, sequence: int = 3) -> Path:
    """Return the file of a segment."""
    return segment_path(directory, sequence)


def parts_of(session: RecoveredSession) -> list[PendingPublication]:
    """Return every part of a recovered session that a bundle can be made of."""
    current = PendingPublication(
        session.part,
        session.first,
        session.decided - session.first,
        session.closing.ended if session.closing else "open",
        False,
        session.event_frames,
        session.decision_frames,
        session.segment,
        session.lost,
        None if session.rotation is None else session.rotation.store,
    )
    return [*session.unpublished, current]


def compose(
    journal: Path,
    session: RecoveredSession,
    part: PendingPublication,
    destination: Path,
    *,
    ended_at: str,
    style: str = "compact",
    compress: str = "none",
) -> Path:
    """Write the bundle of a part and its manifest, as the daemon does after a start; return its path."""
    is_last = part.part == session.part
    job = ComposeJob(
        journal=str(journal),
        destination=str(destination),
        style=style,
        compress=compress,
        description=session.description,
        part=part.part,
        first=part.first,
        count=part.count,
        event_frames=array("Q", part.event_frames).tobytes(),
        decision_frames=array("Q", part.decision_frames).tobytes(),
        ended=part.ended,
        forced=part.forced,
        store=part.store,
        interruption=session.interruption if is_last else None,
        left_over=session.left_over if is_last else None,
        ended_at=ended_at,
    )
    return Path(publish_bundle(compose_bundle(job)).publication.bundle)
