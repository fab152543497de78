"""Classify the frames and bad stretches of a journal as whole, torn or damaged. No I/O.

Rules:

1. A bad or missing frame after which only frames of its own batch follow is *torn*: the batch was never synced, so
   nothing of it was acknowledged. Everything from the first bad frame on is cut off (and kept as ``.torn``); whole
   frames before it stay.
2. A bad frame after which the header of a later batch, or another segment, follows is *damage*: its batch was durable.
   The sessions concerned are quarantined, the others are not. A SEAL frame is a batch of its own.
3. A bad frame with a good header concerns the session that the header names. Any other damage concerns every session,
   unless the session's later frames prove that none of its own is missing: its indices continue without a gap, for
   events and for decisions. A session that begins after the damage is not concerned; one whose first known frame is
   there, but is not its OPEN frame, may be.
4. The batch of a bad frame is the one in its header. Without a header it is the batch of the frame before it, unless
   that frame was the last of its batch or of its segment; then it is the next one.
5. Frames follow each other without a gap, by batch and by index in the batch. A segment that ends before the place that
   the head of the next one names is damaged at its end. The segments before the oldest one may have been deleted; that
   happens only after its first batch is synced, so a bad beginning of it is damage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from crc32c import crc32c

from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.frame import (
    ALIGNMENT,
    CHECKED_BYTES,
    FORMAT_VERSION,
    HEADER_BYTES,
    IGNORABLE,
    MAGIC,
    MAX_BODY,
    OFFSET_BITS,
    FrameKind,
    Header,
    Position,
    unpack_header,
)
from ergo_capture.journal.payloads import decode_segment_head
from ergo_capture.journal.scan_report import Damage, Proof, ScanReport, SessionFrames, TornEnd, Verdict

_KINDS: Final = frozenset(FrameKind)
#: Integers compare faster than members of an enum.
_EVENTS: Final = int(FrameKind.EVENTS)
_DECISIONS: Final = int(FrameKind.DECISIONS)


class WholeFrame(NamedTuple):
    """A frame with a good header and a good body."""

    header: Header
    position: Position
    #: The body of a SEGMENT frame; empty for any other frame.
    body: bytes


class BadStretch(NamedTuple):
    """Bytes that are not a whole frame."""

    #: The header, if only the body is bad; else None.
    header: Header | None
    damage: Damage


@dataclass(slots=True)
class Block:
    """The bytes of a segment from the beginning of a frame; the classifier may take several whole frames at once."""

    view: memoryview
    offset: int
    #: Bytes of the frames that were taken.
    taken: int = 0


class SegmentContents(NamedTuple):
    """A segment as it is read, one frame or bad stretch at a time."""

    path: Path
    sequence: int
    #: Bytes of the file.
    size: int
    #: Whether it is the last segment.
    last: bool
    items: Iterable[WholeFrame | BadStretch | Block]


def classify(segments: Iterable[SegmentContents]) -> ScanReport:
    """Report what the segments of a journal hold.

    Args:
        segments: all segments, in order; each is read before the next one is asked for.

    Raises:
        JournalError: a frame about the journal itself needs a newer program.
    """
    return _Classifier().run(segments)


def needs_newer(header: Header) -> str | None:
    """Return why a frame needs a newer program; None where it does not."""
    if header.version > FORMAT_VERSION:
        return f"its format version is {header.version}, and this program reads up to {FORMAT_VERSION}"
    if header.kind not in _KINDS and not header.flags & IGNORABLE:
        return f"a frame of the unknown kind {header.kind} needs a newer ergo-capture"
    return None


def newer_error(path: Path, reason: str) -> JournalError:
    """Return the error for a segment that only a newer program can read."""
    return JournalError(
        f"read journal segment '{path}': {reason}",
        op="read journal",
        path=path,
        hint="start the newer ergo-capture that wrote it",
    )


class _Classifier:
    """Classifies frames and bad stretches in the journal's order.

    A bad stretch is held, with everything after it, until a later frame proves its batch durable. A stretch that is
    still held at the end is torn.
    """

    def __init__(self) -> None:
        self.report = ScanReport()
        #: The last frame: its batch, and how many frames of the batch there are up to it.
        self.batch = 0
        self.index = 0
        #: Batch and index that the next frame must have; None if unknown.
        self.expected: tuple[int, int] | None = None
        #: Whether nothing of the segment was taken yet.
        self.fresh = True
        #: Whether this is the oldest segment and older ones were deleted.
        self.after_deleted = False
        #: Whether the last frame is a SEAL frame.
        self.sealed = False
        #: The highest batch that is known to have been synced.
        self.synced = 0
        #: A bad stretch that may be torn, and all that came after it.
        self.held: list[BadStretch | WholeFrame] = []
        #: Where the segment before ends.
        self.end_before = 0

    def run(self, segments: Iterable[SegmentContents]) -> ScanReport:
        for segment in segments:
            # Rule 2: another segment follows, so a bad end of the one before it was durable.
            self._place_held()
            self._begin(segment)
            for item in segment.items:
                if isinstance(item, Block):
                    self._take_block(item, segment.sequence)
                else:
                    self._take(item)
            if self.fresh and not self.held:
                self._take_empty(segment)
        self._finish()
        return self.report

    # --- one segment ---

    def _begin(self, segment: SegmentContents) -> None:
        report, sequence = self.report, segment.sequence
        self.path = segment.path
        self.fresh = True
        self.after_deleted = not report.segments and sequence > 1
        if not report.segments:
            self.expected = (1, 0) if sequence == 1 else None
        elif sequence != report.segments[-1] + 1:
            missing = f"segments {report.segments[-1] + 1} to {sequence - 1} are missing"
            self._lose_track(Damage(sequence, 0, 0, missing))
        elif self.expected is not None:
            self.expected = (self.batch + 1, 0)
        report.segments.append(sequence)
        report.bytes += segment.size
        self.end_before, report.end = report.end, 0

    def _take_empty(self, segment: SegmentContents) -> None:
        if segment.last and not self.after_deleted:
            self.report.empty = segment.sequence
        else:
            self._lose_track(Damage(segment.sequence, 0, segment.size, "the segment is empty"))

    def _check_head(self, frame: WholeFrame) -> None:
        """Compare the end of the segment before with the head of this one (rule 5)."""
        sequence = frame.position.segment
        try:
            head = decode_segment_head(frame.body)
        except ValueError:
            self._lose_track(Damage(sequence, 0, 0, "the segment's first frame is missing"))
            return
        if self.expected is not None and (head.batch, head.frames) != (self.batch, self.index):
            reason = (
                f"it ends after batch {self.batch}, frame {self.index}, but the next segment says "
                f"batch {head.batch}, frame {head.frames}"
            )
            self._lose_track(Damage(sequence - 1, self.end_before, 0, reason))

    # --- one frame or stretch ---

    def _take(self, item: BadStretch | WholeFrame) -> None:
        if self.fresh and not self.held and isinstance(item, WholeFrame):
            self._check_head(item)
        header = item.header
        if header is not None:
            # A batch is begun only when the one before it is synced; the first batch of a segment whose predecessors
            # were deleted is synced itself.
            self.synced = max(self.synced, header.batch if self.after_deleted and self.fresh else header.batch - 1)
        if not self.held and (isinstance(item, WholeFrame) or self._judge(item) is not Verdict.TORN):
            self._place(item)
            return
        self.held.append(item)
        first = self.held[0]
        assert isinstance(first, BadStretch)
        if self._judge(first) is not Verdict.TORN:
            # Take them again, one by one: after the durable ones there may be a torn end.
            held, self.held = self.held, []
            for each in held:
                self._take(each)

    def _take_block(self, block: Block, sequence: int) -> None:
        """Take the frames of events and decisions at the beginning of a block, up to one that needs ``_take``.

        Taken one by one, the frames of a client with one event in flight would cost several times their checksums.
        """
        if self.held or self.fresh or self.sealed or self.expected is None:
            return
        view, base, report = block.view, block.offset, self.report
        start, size = 0, len(view)
        batch, index = self.expected
        total = number = 0
        session: SessionFrames | None = None
        unattributed = len(report.unattributed)
        while start + HEADER_BYTES <= size:
            (
                magic, version, kind, _, segment, its_batch, owner, first, count, length, its_index, total_here,
                body_crc, own_crc,
            ) = unpack_header(view, start)  # fmt: skip
            body = start + HEADER_BYTES
            stop = body + length
            if (
                (kind != _EVENTS and kind != _DECISIONS)
                or its_batch != batch
                or its_index != index
                or its_index >= total_here
                or stop > size
                or length > MAX_BODY
                or segment != sequence
                or version > FORMAT_VERSION
                or magic != MAGIC
                or not owner
                or crc32c(view[start : start + CHECKED_BYTES]) != own_crc
                or crc32c(view[body:stop]) != body_crc
            ):
                break
            if owner != number or session is None:
                number, session = owner, self._session(owner)
            if kind == _EVENTS:
                if session.next_event is not None and session.next_event != first:
                    break
                session.next_event = first + count
                session.events_proved = unattributed
                session.events.append(sequence << OFFSET_BITS | base + start)
            else:
                if session.outcome or (session.next_decision is not None and session.next_decision != first):
                    break
                session.next_decision = first + count
                session.decisions_proved = unattributed
                session.decisions.append(sequence << OFFSET_BITS | base + start)
            if not index:
                report.batch_start = base + start
            self.batch, self.index, total = batch, index + 1, total_here
            if self.index == total:
                batch, index = batch + 1, 0
            else:
                index += 1
            report.frames += 1
            start = stop + -length % ALIGNMENT
        if total:
            self.expected = batch, index
            self.synced = max(self.synced, self.batch - 1)
            report.end = base + start
            report.last_batch, report.last_frames = self.batch, self.index
            block.taken = start

    def _judge(self, bad: BadStretch) -> Verdict:
        """Return the verdict on a bad stretch here, from the frames seen so far (rules 2, 4 and 5)."""
        if self.sealed and not self.fresh:
            return Verdict.STRAY
        if bad.header is not None:
            durable = bad.header.batch <= self.synced
        else:
            durable = self.expected is None or self.expected[0] <= self.synced
        return Verdict.DAMAGED if durable else Verdict.TORN

    def _place_held(self) -> None:
        held, self.held = self.held, []
        for item in held:
            self._place(item)

    def _place(self, item: BadStretch | WholeFrame) -> None:
        """Count a frame, or record a stretch as damage, and continue after it."""
        report, header = self.report, item.header
        if header is not None:
            self._check_order(header, item.position.offset if isinstance(item, WholeFrame) else item.damage.offset)
        if isinstance(item, WholeFrame):
            self._add(item.header, item.position)
        else:
            self._damage(item)
        self.fresh = False
        if header is None:
            self.expected = None
        else:
            self.batch, self.index = header.batch, header.index + 1
            self.expected = (header.batch + 1, 0) if header.last_in_batch else (header.batch, self.index)
            report.last_batch, report.last_frames = self.batch, self.index

    def _check_order(self, header: Header, offset: int) -> None:
        # A PROOF frame comes where a start cut a batch off, even in the middle of the batch.
        if self.expected is None or header.kind == FrameKind.PROOF:
            return
        batch, index = self.expected
        if (header.batch, header.index) != (batch, index):
            reason = f"batch {header.batch}, frame {header.index} is where batch {batch}, frame {index} was"
            self._damage_anybody(Damage(header.segment, offset, 0, reason))

    def _add(self, header: Header, position: Position) -> None:
        report = self.report
        report.end = position.offset + header.size
        report.frames += 1
        self.sealed = header.kind == FrameKind.SEAL
        if self.fresh or header.batch != self.batch:
            report.batch_start = position.offset
        newer = needs_newer(header)
        if newer is not None and header.session == 0:
            raise newer_error(self.path, newer)
        if not header.session:
            return
        session = self._session(header.session)
        if newer is not None:
            session.damage = session.damage or newer
        else:
            session.add(header, position, len(report.unattributed))

    def _session(self, number: int) -> SessionFrames:
        session = self.report.sessions.get(number)
        if session is None:
            session = self.report.sessions[number] = SessionFrames(number)
        return session

    # --- damage ---

    def _damage(self, bad: BadStretch) -> None:
        report, header, damage = self.report, bad.header, bad.damage
        stray = self.sealed and not self.fresh
        if stray:
            damage.verdict = Verdict.STRAY
        if header is None and not stray:
            self._damage_anybody(damage)
        else:
            # Stray bytes concern no session: nothing was acknowledged after the SEAL frame.
            report.damage.append(damage)
        if header is not None and header.session:
            session = self._session(header.session)
            session.damage = session.damage or str(damage)
            # The header alone shows that the session's last bundle is durable.
            session.done |= header.kind == FrameKind.PUBLISHED and header.count > 0
        self.sealed = stray
        report.end = damage.offset + damage.length
        if self.fresh:
            report.batch_start = damage.offset

    def _lose_track(self, damage: Damage) -> None:
        self._damage_anybody(damage)
        self.expected = None

    def _damage_anybody(self, damage: Damage) -> None:
        self.report.damage.append(damage)
        self.report.unattributed.append(damage)

    # --- the end ---

    def _finish(self) -> None:
        report = self.report
        if self.held:
            report.ending, report.torn = Verdict.TORN, self._torn_end()
        elif self.sealed:
            report.ending = Verdict.SEALED
        report.proof = None if self.sealed else self._proof()
        for session in report.sessions.values():
            if session.done or session.damage is not None:
                continue
            if session.proved < len(report.unattributed):
                damage = report.unattributed[session.proved]
                damage.sessions.append(session.number)
                session.damage = str(damage)
            elif session.open is None and report.segments[0] == 1:
                # Otherwise a deleted segment may have held it; recovery decides whether it is needed.
                session.damage = "its OPEN frame, which describes it, is missing"

    def _torn_end(self) -> TornEnd:
        first, last = self.held[0], self.held[-1]
        assert isinstance(first, BadStretch)
        segment, offset = first.damage.segment, first.damage.offset
        if isinstance(last, WholeFrame):
            end = last.position.offset + last.header.size
        else:
            end = last.damage.offset + last.damage.length
        frames = sum(isinstance(item, WholeFrame) for item in self.held)
        return TornEnd(segment, offset, end - offset, frames, first.damage.reason)

    def _proof(self) -> Proof | None:
        """Return the frame to write in place of a torn end or segment that the start removes after damage."""
        report, torn = self.report, self.report.torn
        removed = report.empty is not None or (torn is not None and torn.offset == 0)
        if torn is None and not removed:
            return None
        offset = -(-self.end_before // ALIGNMENT) * ALIGNMENT if removed or torn is None else torn.offset
        segments = report.segments[:-1] if removed else report.segments
        if not segments or all(damage.segment != segments[-1] for damage in report.damage):
            return None
        # Add one if the last place is unknown: the bad stretch there belongs to a later batch.
        return Proof(segments[-1], offset, max(self.synced, self.batch + (self.expected is None)) + 1)
