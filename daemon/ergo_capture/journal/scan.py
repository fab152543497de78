"""Walks a journal that somebody left behind: which frames are whole, and is the rest torn or damaged.

The rules, in the words of the design's table:

1. A bad or missing frame after which only frames of its own batch follow is *torn*: the batch was never
   synced, so nothing of it was acknowledged. Everything from the first bad frame on goes (and is kept as
   ``.torn``); whole frames before it stay.
2. A bad frame after which the header of a later batch, or another segment, follows is *damage*: its batch
   was durable. The sessions concerned are quarantined, the others are not. (A seal is a batch of its own.)
3. Whose frame it was is known where its header is good. Otherwise a session is concerned unless its later
   frames prove that none of its own is missing: its indices go on without a gap, for events and decisions. One that
   begins behind the damage is not concerned; one that is only met there may be.
4. Which batch a bad frame belongs to is known from its header, or else from the frame before it: the same
   batch, unless that frame was the last of it or of its segment.
5. Frames follow each other without a gap, by batch and index in it. A segment that ends before the next one
   says it did is damaged at its end. One that lacks its beginning is one whose predecessors were retired;
   that is done only after its first batch is synced, so a bad beginning of it is damage.
6. Lengths are believed only from a header whose checksum is right; nothing is allocated for one that is not.
   Where one is right, the bytes up to its end are its body, whatever they look like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.frame import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_BYTES,
    IGNORABLE,
    MAGIC,
    FrameKind,
    Header,
    Position,
    decode_header,
)
from ergo_capture.journal.reader import Window
from ergo_capture.journal.scan_report import Damage, Proof, ScanReport, SessionFrames, TornEnd
from ergo_capture.journal.segment import is_torn_copy, is_unfinished, read_head, segment_path, sequence_of
from ergo_capture.storage import Storage


def scan(directory: Path, storage: Storage, *, on_progress: Callable[[int, int], None] | None = None) -> ScanReport:
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
        self.scan = ScanReport()
        #: The place after the last frame: its batch, the next index, and how many the batch has.
        self.batch = 0
        self.index = 0
        self.batch_frames = 0
        #: Whether that place is known, so that the next frame can be held to it.
        self.known = False
        #: Whether no frame of the segment has been met yet, and whether it is the oldest of several.
        self.fresh = True
        self.successor = False
        #: The highest batch that is known to have been synced.
        self.proved = 0
        #: The first bad stretch and all that came after it, until it is known to be torn or damage.
        self.held: list[Bad | Whole] = []
        #: Where the segment before ends.
        self.end_before = 0
        #: Why each segment does not follow the one before it, by sequence.
        self.gaps: dict[int, str] = {}

    def run(self, on_progress: Callable[[int, int], None]) -> ScanReport:
        sequences = self._sequences()
        for done, sequence in enumerate(sequences):
            on_progress(done, len(sequences))
            self._begin(sequence, oldest=done == 0)
            file = self.storage.open(segment_path(self.directory, sequence))
            try:
                window = Window(file)
                self._walk(window, sequence, last=done + 1 == len(sequences))
            finally:
                file.close()
        self._finish()
        return self.scan

    def _sequences(self) -> list[int]:
        sequences = []
        for name in self.storage.list(self.directory):
            sequence = sequence_of(name)
            if sequence is None:
                if not is_unfinished(name) and not is_torn_copy(name):
                    self.scan.foreign.append(name)
                continue
            path = self.directory / name
            if not self.storage.is_plain(path):
                raise JournalError(
                    f"read journal: '{path}' is not a plain file",
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

    def _begin(self, sequence: int, *, oldest: bool) -> None:
        # Rule 2: another segment follows, so whatever was bad at the end of the one before was durable.
        held, self.held = self.held, []
        for item in held:
            self._place(item)
        if oldest:
            # Why: segment 1 begins with batch 1; before any other, batches may have been retired.
            self.known = sequence == 1
        elif sequence in self.gaps:
            self.known = False
            self._damage_anybody(Damage(sequence, 0, 0, self.gaps[sequence]))
        self.successor = oldest and sequence > 1
        self.fresh = True

    def _walk(self, window: Window, sequence: int, *, last: bool) -> None:
        scan = self.scan
        size = window.size
        scan.bytes += size
        if last:
            # Why: a daemon may be writing it. What is before this end was written before this look, in order; what
            # comes behind it is not looked at, so that a batch that is seen proves nothing about bytes read earlier.
            window.end_at(-(-end_of(window) // ALIGNMENT) * ALIGNMENT)
        self.end_before, scan.end = scan.end, 0
        written = False
        for item in pieces(window, segment_path(self.directory, sequence), sequence, size):
            written = True
            if self.fresh and not self.held and isinstance(item, Whole):
                self._check_head(item, sequence)
            self._meet(item)
        if not written and last and not self.successor:
            scan.empty.append(sequence)
        elif not written:
            self.known = False
            self._damage_anybody(Damage(sequence, 0, size, "the segment is empty"))

    def _check_head(self, item: Whole, sequence: int) -> None:
        """Hold the segment before to what this one says of it (rule 5)."""
        try:
            head = read_head(item.body)
        except ValueError:
            self._damage_anybody(Damage(sequence, 0, 0, "the segment's first frame is missing"))
            self.known = False
            return
        if self.known and (head.batch, head.frames) != (self.batch, self.index):
            reason = (
                f"it ends after batch {self.batch}, frame {self.index}, but the next segment says "
                f"batch {head.batch}, frame {head.frames}"
            )
            self._damage_anybody(Damage(sequence - 1, self.end_before, 0, reason))
            self.known = False

    # --- one frame or stretch ---

    def _meet(self, item: Bad | Whole) -> None:
        header = item.header
        if header is not None:
            durable = header.batch - 1
            if self.successor and self.fresh:
                durable = header.batch
            self.proved = max(self.proved, durable)
        if not self.held and (isinstance(item, Whole) or self._is_durable(item)):
            self._place(item)
            return
        self.held.append(item)
        first = self.held[0]
        assert isinstance(first, Bad)
        if self._is_durable(first):
            # Why all again, and not all as damage: behind what was durable there may be a torn end.
            held, self.held = self.held, []
            for each in held:
                self._meet(each)

    def _is_durable(self, bad: Bad) -> bool:
        """Whether the batch of a bad stretch was synced, as far as the frames seen say (rules 2, 4 and 5)."""
        if self._behind_seal:
            return True
        if bad.header is not None:
            return bad.header.batch <= self.proved
        if not self.known:
            return True
        same = not self.fresh and self.index < self.batch_frames
        return (self.batch if same else self.batch + 1) <= self.proved

    @property
    def _behind_seal(self) -> bool:
        return self.scan.sealed and not self.fresh

    def _place(self, item: Bad | Whole) -> None:
        """Take a frame or a damage for what it is, and go on behind it."""
        header = item.header
        if header is not None:
            self._check_order(header, item.damage.offset if isinstance(item, Bad) else item.position.offset)
        if isinstance(item, Bad):
            self._damage(item)
            self.scan.sealed = self._behind_seal
            self.scan.end = item.damage.offset + item.damage.length
            if self.fresh:
                self.scan.batch_start = item.damage.offset
        else:
            self._take(item.header, item.position)
        self.fresh = False
        self.known = header is not None
        if header is not None:
            self.batch, self.index, self.batch_frames = header.batch, header.index + 1, header.frames
            self.scan.last_batch, self.scan.last_frames = self.batch, self.index

    def _check_order(self, header: Header, offset: int) -> None:
        # Why not of a proof: it comes where a start cut a batch off, be it in the midst of it.
        if not self.known or header.kind == FrameKind.PROOF:
            return
        middle = not self.fresh and self.index < self.batch_frames
        expected = (self.batch, self.index) if middle else (self.batch + 1, 0)
        if (header.batch, header.index) != expected:
            reason = f"batch {header.batch}, frame {header.index} is where batch {expected[0]}, frame {expected[1]} was"
            self._damage_anybody(Damage(header.segment, offset, 0, reason))

    def _take(self, header: Header, position: Position) -> None:
        scan, kind = self.scan, header.kind
        scan.end = position.offset + header.size
        scan.frames += 1
        scan.sealed = kind == FrameKind.SEAL
        if self.fresh or header.batch != self.batch:
            scan.batch_start = position.offset
        if kind not in _KINDS and not header.flags & IGNORABLE:
            reason = f"a frame of the unknown kind {kind} needs a newer ergo-capture"
            if header.session == 0:
                raise newer(segment_path(self.directory, position.segment), reason)
            session = self._session(header.session)
            session.damage = session.damage or reason
        elif header.session:
            self._session(header.session).take(header, position, len(self.scan.unattributed))

    def _session(self, number: int) -> SessionFrames:
        session = self.scan.sessions.get(number)
        if session is None:
            session = self.scan.sessions[number] = SessionFrames(number)
        return session

    # --- damage ---

    def _damage(self, bad: Bad) -> None:
        header = bad.header
        if header is None and not self._behind_seal:
            self._damage_anybody(bad.damage)
            return
        # Why nobody is concerned behind a seal: nothing was ever acknowledged there.
        self.scan.damage.append(bad.damage)
        if header is None or not header.session:
            return
        session = self._session(header.session)
        session.damage = session.damage or str(bad.damage)
        # Why the header is enough: it says that the session's last bundle was durable.
        session.done |= header.kind == FrameKind.PUBLISHED and header.count > 0

    def _damage_anybody(self, damage: Damage) -> None:
        self.scan.damage.append(damage)
        self.scan.unattributed.append(damage)

    def _finish(self) -> None:
        scan, sealed = self.scan, self.scan.sealed
        if self.held:
            scan.sealed = False
            first, last = self.held[0], self.held[-1]
            assert isinstance(first, Bad)
            offset = first.damage.offset
            if isinstance(last, Bad):
                end = last.damage.offset + last.damage.length
            else:
                end = last.position.offset + last.header.size
            frames = sum(isinstance(item, Whole) for item in self.held)
            scan.torn = TornEnd(first.damage.segment, offset, end - offset, frames)
        scan.proof = None if sealed else self._proof()
        for session in scan.sessions.values():
            proved = min(session.events_proved, session.decisions_proved)
            if session.done or session.damage is not None:
                continue
            if proved < len(scan.unattributed):
                doubt = scan.unattributed[proved]
                doubt.sessions.append(session.number)
                session.damage = str(doubt)
            elif session.open is None and scan.segments[0] == 1:
                # Why only then: an older segment that had it may have been retired; recovery knows.
                session.damage = "the frame that says what it is, is missing"

    def _proof(self) -> Proof | None:
        """What is to be said in place of a torn end, or of a last segment that holds nothing, where damage is before it."""
        scan, tail = self.scan, self.scan.torn
        removed = bool(scan.empty) or (tail is not None and tail.offset == 0)
        if tail is None and not removed:
            return None
        offset = -(-self.end_before // ALIGNMENT) * ALIGNMENT if removed or tail is None else tail.offset
        segments = scan.segments[:-1] if removed else scan.segments
        if not segments or all(damage.segment != segments[-1] for damage in scan.damage):
            return None
        # Why one more where the last place is not known: the bad stretch there is of some later batch.
        return Proof(segments[-1], offset, max(self.proved, self.batch + (not self.known)) + 1)

    def __repr__(self) -> str:
        return f"<_Scanner at batch {self.batch}, frame {self.index}, {len(self.held)} held>"


_KINDS: Final = frozenset(FrameKind)


_BLOCK: Final = 1 << 20


class Whole(NamedTuple):
    """A whole frame; the body only where the scan itself reads it."""

    header: Header
    position: Position
    body: bytes


class Bad(NamedTuple):
    """A bad stretch; with the header, where it is that of one frame whose body is bad."""

    header: Header | None
    damage: Damage


def pieces(window: Window, path: Path, sequence: int, file_bytes: int) -> Iterator[Bad | Whole]:
    """Every frame of the segment in order, and every stretch where there is none.

    Args:
        window: the segment; it may end before the file does.
        path: the segment's, for errors.
        sequence: the segment's.
        file_bytes: bytes of the file.

    Raises:
        JournalError: a newer version wrote it.
        StorageError: the segment cannot be read.
    """
    offset, end = 0, None
    while offset < window.size:
        header = window.header(offset, sequence)
        if header is None:
            end = end_of(window) if end is None else end
            if offset >= end:
                return
            found = _next_header(window, offset + ALIGNMENT, sequence)
            stop = end if found is None else found
            yield Bad(None, Damage(sequence, offset, stop - offset, "there is no frame"))
            if found is None:
                return
            offset = found
            continue
        if header.version > FORMAT_VERSION:
            raise newer(path, f"its format version is {header.version}, and this program reads up to {FORMAT_VERSION}")
        body = window.body(offset, header)
        if body is None:
            size = min(header.size, file_bytes - offset)
            sessions = [header.session] if header.session else []
            yield Bad(header, Damage(sequence, offset, size, "a frame's body is not what was written", sessions))
        else:
            read_here = header.kind == FrameKind.SEGMENT
            yield Whole(header, Position(sequence, offset), bytes(body) if read_here else b"")
        offset += header.size


def newer(path: Path, reason: str) -> JournalError:
    """What a segment is refused with that holds what only a newer program understands."""
    return JournalError(
        f"read journal segment '{path}': {reason}",
        op="read journal",
        path=path,
        hint="start the newer ergo-capture that wrote it",
    )


def end_of(window: Window) -> int:
    """The offset after the last byte that is not zero."""
    stop = window.size
    while stop:
        start = max(0, stop - _BLOCK)
        written = bytes(window.view(start, stop - start)).rstrip(b"\0")
        if written:
            return start + len(written)
        stop = start
    return 0


def _next_header(window: Window, offset: int, sequence: int) -> int | None:
    """The next offset, a multiple of 8, with a header on it that has the right checksum."""
    stamp = sequence.to_bytes(8, "little")
    while offset + HEADER_BYTES <= window.size:
        block = bytes(window.view(offset, _BLOCK))
        last = len(block) - HEADER_BYTES
        at = block.find(MAGIC)
        while 0 <= at <= last:
            # Why the stamp before the checksum: text full of magics costs next to nothing.
            if (
                at % ALIGNMENT == 0
                and block[at + 8 : at + 16] == stamp
                and decode_header(block[at : at + HEADER_BYTES], sequence) is not None
            ):
                return offset + at
            at = block.find(MAGIC, at + 1)
        # Why not the whole block: a header may lie across its end.
        offset += last // ALIGNMENT * ALIGNMENT + ALIGNMENT
    return None
