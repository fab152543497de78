"""Walks a journal that somebody left behind: which frames are whole, and is the rest torn or damaged.

Owns: the classification of every byte, and the frames of each session.
Not here: what frames mean (``recovery.py``), mending (``journal.py``).

The rules, in the words of the design's table:

1. A bad or missing frame after which only frames of its own batch follow is *torn*: the batch was never
   synced, so nothing of it was acknowledged. Everything from the first bad frame on goes (and is kept as
   ``.torn``); whole frames before it stay.
2. A bad frame after which a later batch, a seal, or another segment follows is *damage*: its batch was
   durable. The sessions concerned are quarantined, the others are not.
3. Whose frame it was is known where its header is good. Otherwise a session is concerned unless its later
   frames prove that none of its own is missing: its indices go on without a gap, for events and decisions.
4. Which batch a bad frame belongs to is known from the frame before it: the same batch, unless that frame
   was the last of it.
5. A segment that ends before the next one says it did is damaged at its end. One that lacks its beginning
   is one whose predecessors were retired.
6. Lengths are believed only from a header whose checksum is right; nothing is allocated for one that is not.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from ergo_capture.journal.frame import ALIGNMENT, FORMAT_VERSION, HEADER_BYTES, IGNORABLE, MAGIC, FrameKind, Header
from ergo_capture.journal.reader import JournalError, Position, Window
from ergo_capture.journal.segment import NEW_SUFFIX, TORN_SUFFIX, SegmentHead, read_head, segment_path, sequence_of
from ergo_capture.storage import Storage

_BLOCK: Final = 1 << 20


@dataclass(slots=True)
class Damage:
    """A stretch of a segment that held acknowledged data and no longer does."""

    segment: int
    offset: int
    #: Bytes up to the next whole frame, or the end of the segment.
    length: int
    reason: str
    #: Sessions whose frames are known to be concerned, by number.
    sessions: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"segment {self.segment}, offset {self.offset}: {self.reason} ({self.length} bytes)"


@dataclass(slots=True)
class Tail:
    """A torn end of the journal."""

    segment: int
    offset: int
    #: Bytes from there to the last one that is not zero.
    length: int
    #: Whole frames among them, of the batch that was never synced.
    frames: int


@dataclass(slots=True)
class SessionFrames:
    """Where the frames of one session are, in order; positions are packed."""

    number: int
    open: Position | None = None
    events: array[int] = field(default_factory=lambda: array("Q"))
    decisions: array[int] = field(default_factory=lambda: array("Q"))
    rotations: list[Position] = field(default_factory=list)
    close: Position | None = None
    published: list[Position] = field(default_factory=list)
    #: Whether a PUBLISHED frame says that it was the last bundle.
    done: bool = False
    #: Index after the last event and the last decision; None before the first.
    next_event: int | None = None
    next_decision: int | None = None
    #: What is wrong with it, if its journal is damaged.
    damage: str | None = None
    #: What is wrong unless later events, or decisions, prove otherwise.
    doubt_events: str | None = None
    doubt_decisions: str | None = None

    @property
    def first_segment(self) -> int:
        """The oldest segment that holds a frame of it."""
        candidates = [Position.unpack(frames[0]).segment for frames in (self.events, self.decisions) if frames]
        if self.open is not None:
            candidates.append(self.open.segment)
        candidates += [position.segment for position in self.rotations[:1]]
        return min(candidates, default=0)

    @property
    def finished(self) -> bool:
        """Whether nothing more can be missing: its CLOSE frame was found in its place."""
        return self.close is not None and self.damage is None


@dataclass(slots=True)
class Scan:
    """All that a journal holds."""

    sessions: dict[int, SessionFrames] = field(default_factory=dict)
    segments: list[int] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    tail: Tail | None = None
    #: Bytes of the last segment that are worth keeping.
    end: int = 0
    last_batch: int = 0
    #: Frames of the last batch that are there.
    last_frames: int = 0
    frames: int = 0
    bytes: int = 0
    sealed: bool = False
    #: Segments at the end without a single whole frame: made, and never written to.
    empty: list[int] = field(default_factory=list)
    #: Names in the directory that are none of ours; left alone.
    foreign: list[str] = field(default_factory=list)

    @property
    def next_session(self) -> int:
        """A session number that was never used."""
        return max(self.sessions, default=0) + 1


def scan(directory: Path, storage: Storage, *, on_progress: Callable[[int, int], None] | None = None) -> Scan:
    """Read every segment once, in order; changes nothing.

    Raises:
        JournalError: something that is not a segment has a segment's name, or a newer version wrote it.
        StorageError: a file cannot be read.
    """
    return _Scanner(directory, storage).run(on_progress or (lambda _done, _total: None))


class _Scanner:
    def __init__(self, directory: Path, storage: Storage) -> None:
        self.directory = directory
        self.storage = storage
        self.scan = Scan()
        #: The place after the last whole frame: its batch, the next index, and how many the batch has.
        self.batch = 0
        self.index = 0
        self.frames_in_batch = 0
        #: The first bad stretch and all that came after it, until it is known to be torn or damage.
        self.held: list[Damage | tuple[Header, Position]] = []
        #: Why each segment does not follow the one before it, by sequence.
        self.gaps: dict[int, str] = {}

    def run(self, on_progress: Callable[[int, int], None]) -> Scan:
        sequences = self._sequences()
        for done, sequence in enumerate(sequences):
            on_progress(done, len(sequences))
            # Rule 2: another segment follows, so whatever was bad at the end of the one before was durable.
            self._release_held()
            if sequence in self.gaps:
                self._damaged(Damage(sequence, 0, 0, self.gaps[sequence]))
            file = self.storage.open(segment_path(self.directory, sequence))
            try:
                self._walk(Window(file), sequence, first=done == 0, last=done + 1 == len(sequences))
            finally:
                file.close()
        self._finish()
        return self.scan

    def _sequences(self) -> list[int]:
        sequences = []
        for name in self.storage.list(self.directory):
            sequence = sequence_of(name)
            if sequence is None:
                if not name.endswith((NEW_SUFFIX, TORN_SUFFIX)):
                    self.scan.foreign.append(name)
                continue
            path = self.directory / name
            if path.is_symlink() or path.is_dir():
                raise JournalError(
                    f"read journal: '{path}' is not a file",
                    op="read journal",
                    path=path,
                    hint="move it out of the journal's directory; only segments have such names",
                )
            sequences.append(sequence)
        for before, after in pairwise(sequences):
            if after != before + 1:
                self.gaps[after] = f"segments {before + 1} to {after - 1} are missing"
        self.scan.segments = sequences
        return sequences

    # --- one segment ---

    def _walk(self, window: Window, sequence: int, *, first: bool, last: bool) -> None:
        self.scan.bytes += window.size
        self.scan.end = 0
        started = False
        for item in self._items(window, sequence):
            if isinstance(item, Damage):
                self.held.append(item)
                continue
            header, position, body = item
            if self.held and self._proves_damage(header):
                self._release_held()
            if self.held:
                self.held.append((header, position))
                continue
            if not started:
                self._check_head(header, body, sequence, first=first or sequence in self.gaps)
            started = True
            self._take(header, position)
        if not started and not self.held:
            self.scan.empty.append(sequence)
            if not last:
                self._damaged(Damage(sequence, 0, window.size, "the segment is empty"))
        if self.held and self.scan.sealed:
            self._release_held()

    def _items(self, window: Window, sequence: int) -> Iterator[Damage | tuple[Header, Position, memoryview]]:
        """Every whole frame in order, and before it the bad stretch, if there is one, that it was found behind."""
        offset = 0
        stretch: Damage | None = None
        while offset < window.size:
            header = window.header(offset, sequence)
            if header is not None and header.version > FORMAT_VERSION:
                raise self._newer(sequence, header.version)
            body = None if header is None else window.body(offset, header)
            if header is not None and body is not None:
                if stretch is not None:
                    stretch.length = offset - stretch.offset
                    yield stretch
                    stretch = None
                yield header, Position(sequence, offset), body
                offset += header.size
                continue
            if stretch is None:
                rest = _length_of_rest(window, offset)
                if not rest:
                    return
                stretch = Damage(sequence, offset, rest, "no whole frame")
            if header is not None:
                stretch.reason = "a frame's body is not what was written"
                stretch.sessions.append(header.session)
            # Why not past its end where the header is good: what is there may be frames all the same.
            found = _next_magic(window, offset + ALIGNMENT)
            if found is None:
                break
            offset = found
        if stretch is not None:
            yield stretch

    def _proves_damage(self, header: Header) -> bool:
        """Whether a whole frame behind a bad stretch shows that the stretch had been durable (rules 2 and 4)."""
        if header.kind == FrameKind.SEAL:
            return True
        if not self.frames_in_batch:
            # Nothing before the stretch: it is of the same batch only if frames of it are missing in front.
            return header.index == 0
        return header.batch > (self.batch if self.index < self.frames_in_batch else self.batch + 1)

    def _release_held(self) -> None:
        """The held stretch is damage, and what follows it stands."""
        held, self.held = self.held, []
        for item in held:
            if isinstance(item, Damage):
                self._damaged(item)
            else:
                self._take(*item)

    def _check_head(self, header: Header, body: memoryview, sequence: int, *, first: bool) -> None:
        head: SegmentHead | None = None
        if header.kind == FrameKind.SEGMENT:
            try:
                head = read_head(bytes(body))
            except ValueError:
                head = None
        if head is None:
            if self.scan.damage and self.scan.damage[-1].segment == sequence:
                return
            self._damaged(Damage(sequence, 0, 0, "the segment's first frame is missing"))
            return
        if not first and (head.batch, head.frames) != (self.batch, self.index):
            reason = (
                f"it ends after batch {self.batch}, frame {self.index}, but the next segment says "
                f"batch {head.batch}, frame {head.frames}"
            )
            self._damaged(Damage(sequence - 1, self.scan.end, 0, reason))

    def _newer(self, sequence: int, version: int) -> JournalError:
        path = segment_path(self.directory, sequence)
        return JournalError(
            f"read journal segment '{path}': it is of format version {version}, this program reads up to "
            f"{FORMAT_VERSION}",
            op="read journal",
            path=path,
            hint="start the newer ergo-capture that wrote it",
        )

    # --- one frame ---

    def _take(self, header: Header, position: Position) -> None:
        scan = self.scan
        scan.end = position.offset + header.size
        self.batch, self.index, self.frames_in_batch = header.batch, header.index + 1, header.frames
        scan.last_batch, scan.last_frames = header.batch, header.index + 1
        scan.frames += 1
        scan.sealed = header.kind == FrameKind.SEAL
        kind = header.kind
        if header.session == 0:
            return
        session = scan.sessions.get(header.session)
        if session is None:
            session = scan.sessions[header.session] = SessionFrames(header.session)
        if kind == FrameKind.EVENTS:
            self._expect(session, header, "events")
            session.next_event = header.first + header.count
            session.doubt_events = None
            session.events.append(position.pack())
        elif kind == FrameKind.DECISIONS:
            self._expect(session, header, "decisions")
            session.next_decision = header.first + header.count
            session.doubt_decisions = None
            session.decisions.append(position.pack())
        elif kind == FrameKind.OPEN:
            session.open = position
            session.next_event = session.next_decision = 0
        elif kind == FrameKind.ROTATE:
            session.rotations.append(position)
            self._expect_total(session, header, decisions_only=True)
        elif kind == FrameKind.CLOSE:
            session.close = position
            self._expect_total(session, header, decisions_only=False)
        elif kind == FrameKind.PUBLISHED:
            session.published.append(position)
            session.done |= header.count > 0
        elif not header.flags & IGNORABLE:
            session.damage = session.damage or f"a frame of the unknown kind {kind} needs a newer ergo-capture"

    def _expect(self, session: SessionFrames, header: Header, what: str) -> None:
        expected = session.next_event if what == "events" else session.next_decision
        if expected is not None and header.first != expected:
            session.damage = session.damage or f"{what} {expected} to {header.first - 1} are missing from the journal"

    def _expect_total(self, session: SessionFrames, header: Header, *, decisions_only: bool) -> None:
        if session.next_decision not in (None, header.first):
            session.damage = session.damage or f"decisions {session.next_decision} to {header.first - 1} are missing"
        else:
            session.doubt_decisions = None
        if decisions_only:
            return
        if session.next_event not in (None, header.first):
            session.damage = session.damage or f"events {session.next_event} to {header.first - 1} are missing"
        else:
            session.doubt_events = None

    # --- damage ---

    def _damaged(self, damage: Damage) -> None:
        self.scan.damage.append(damage)
        for number in damage.sessions:
            session = self.scan.sessions.setdefault(number, SessionFrames(number))
            session.damage = session.damage or str(damage)
        self._doubt_everybody(str(damage))

    def _doubt_everybody(self, reason: str) -> None:
        for session in self.scan.sessions.values():
            if not session.done and not session.finished:
                session.doubt_events = session.doubt_events or reason
                session.doubt_decisions = session.doubt_decisions or reason

    def _finish(self) -> None:
        scan = self.scan
        if self.held:
            stretch = self.held[0]
            assert isinstance(stretch, Damage)
            last = self.held[-1]
            end = last.offset + last.length if isinstance(last, Damage) else last[1].offset + last[0].size
            frames = sum(not isinstance(item, Damage) for item in self.held)
            scan.tail = Tail(stretch.segment, stretch.offset, end - stretch.offset, frames)
        for session in scan.sessions.values():
            session.damage = session.damage or session.doubt_events or session.doubt_decisions


def _length_of_rest(window: Window, offset: int) -> int:
    """Bytes from ``offset`` to the last one that is not zero."""
    last, at = offset, offset
    while at < window.size:
        block = bytes(window.view(at, _BLOCK))
        stripped = block.rstrip(b"\0")
        if stripped:
            last = at + len(stripped)
        at += len(block)
    return last - offset


def _next_magic(window: Window, offset: int) -> int | None:
    """The next offset, a multiple of 8, at which a header may begin."""
    while offset + HEADER_BYTES <= window.size:
        block = bytes(window.view(offset, _BLOCK))
        at = block.find(MAGIC)
        while at >= 0 and (offset + at) % ALIGNMENT:
            at = block.find(MAGIC, at + 1)
        if at >= 0:
            return offset + at
        # Why not a whole block: the magic may lie across its end.
        offset += max(ALIGNMENT, (len(block) - len(MAGIC)) // ALIGNMENT * ALIGNMENT)
    return None
