"""The remaining frames of a session in a damaged journal: its description, its number of events, and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ergo_capture.bundle.format import BundleHead
from ergo_capture.journal.frame import Frame, FrameKind, Header, Position
from ergo_capture.journal.payloads import SessionDescription
from ergo_capture.journal.reader import Window, read_frames
from ergo_capture.journal.scan_report import Damage, ScanReport, SessionFrames
from ergo_capture.journal.segment import segment_path
from ergo_capture.journal.session_frames import read_history
from ergo_capture.kernel.constraints import NO_CONSTRAINTS
from ergo_capture.repair.report import LOST
from ergo_capture.storage import Storage


class PartRange(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a part, by index in the session: from ``first`` to before ``end``."""

    part: int
    first: int
    end: int
    ended: str
    ended_at: str
    forced: bool
    #: Whether it may have had more events.
    uncertain: bool
    #: Whether it stands for several parts, with the first one's number, because the frames between them are lost.
    merged: bool


class PartialSession:
    """A session that is read from its remaining frames.

    Args:
        directory: the journal.
        scan: the report of a scan of it.
        frames: the positions of the session's frames.
        storage: the filesystem.

    Raises:
        JournalDamaged: a frame is not whole any more.
        StorageError: a segment cannot be read.
    """

    def __init__(self, directory: Path, scan: ScanReport, frames: SessionFrames, storage: Storage) -> None:
        self.directory = directory
        self.frames = frames
        self.storage = storage
        history = read_history(directory, frames, storage)
        #: Whether the frames that hold the description are there.
        self.is_described = history.description is not None
        self.description = history.description or _lost_description(frames.number)
        self.rotations = history.rotations
        self.publications = history.publications
        self.closing = history.closing
        self.lost_until = history.lost_until
        #: The number of events of the session; a lower bound if ``uncertain``.
        self.total, self.uncertain = self._count_events(scan) if history.total is None else (history.total, False)

    @property
    def head(self) -> BundleHead:
        """The head of its bundles."""
        known = self.description
        return BundleHead(
            known.graph,
            known.constraints,
            known.adapter_provenance,
            known.runtime_provenance,
            known.egress_provenance,
        )

    def store_before(self, part: PartRange) -> dict[str, Any] | None:
        """Return the context store at the beginning of a part, by key.

        Raises:
            ValueError: the frame that holds it is lost.
        """
        if not part.first:
            return None
        for end in self.rotations:
            if end.boundary == part.first:
                return end.rotation.store
        raise ValueError("the frame with the context store at the beginning of the part is lost")

    # --- how many events it had ---

    def _count_events(self, scan: ScanReport) -> tuple[int, bool]:
        """Return the number of events that frames account for, and whether there may have been more."""
        frames = self.frames
        ends = [end.boundary for end in self.rotations]
        for packed in (frames.events, frames.decisions):
            if packed:
                header = self._frame(packed[-1]).header
                ends.append(header.first + header.count)
        # All events before these positions are accounted for. Decisions prove nothing about undecided events.
        accounted = [0, *frames.events[-1:], *([] if frames.open is None else [frames.open.pack()])]
        is_closed = False
        for damage in scan.damage:
            damaged = self._header_at(damage) if frames.number in damage.sessions else None
            if damaged is None:
                continue
            if damaged.kind in (FrameKind.EVENTS, FrameKind.DECISIONS):
                ends.append(damaged.first + damaged.count)
            elif damaged.kind in (FrameKind.CLOSE, FrameKind.ROTATE):
                ends.append(damaged.first)
            if damaged.kind == FrameKind.EVENTS:
                accounted.append(Position(damage.segment, damage.offset).pack())
            is_closed |= damaged.kind == FrameKind.CLOSE
        uncertain = False
        if scan.unattributed and not is_closed:
            last = scan.unattributed[-1]
            uncertain = Position(last.segment, last.offset).pack() > max(accounted)
        return max(ends, default=0), uncertain

    def _frame(self, packed: int) -> Frame:
        (frame,) = read_frames(self.directory, [Position.unpack(packed)], self.storage)
        return frame

    def _header_at(self, damage: Damage) -> Header | None:
        """Return the header of a damaged frame of this session; None for any other damage."""
        file = self.storage.open(segment_path(self.directory, damage.segment))
        try:
            header = Window(file).header(damage.offset, damage.segment)
        finally:
            file.close()
        return header if header is not None and header.session == self.frames.number else None

    # --- its parts ---

    def parts(self) -> Iterator[PartRange]:
        """Yield the parts of the session, in order."""
        frames = self.frames
        first, part, without_start = 0, 1, 0
        if frames.open is None and self.rotations:
            part = self.rotations[0].rotation.part
            if part > 1:
                # The frame that begins this part is lost: take the index of its first event that is left.
                at = self._frame(frames.events[0]).header.first if frames.events else self.total
                first = min(at, self.rotations[0].boundary)
                without_start = part
        for rotation, end, _ in self.rotations:
            # A part without events was published, and its segments were deleted.
            if end > first or rotation.part in self.publications:
                yield PartRange(
                    part=part,
                    first=first,
                    end=end,
                    ended="rotated",
                    ended_at=rotation.rotated_at,
                    forced=rotation.forced,
                    uncertain=rotation.part == without_start,
                    merged=rotation.part != part,
                )
            first, part = end, rotation.part + 1
        publication = self.publications.get(part)
        if frames.done and self.total <= first and (publication is None or not publication.bundle):
            return
        ended, ended_at = ("open", "") if self.closing is None else (self.closing.ended, self.closing.closed_at)
        yield PartRange(
            part=part,
            first=first,
            end=max(first, self.total),
            ended=ended,
            ended_at=ended_at,
            forced=False,
            uncertain=self.uncertain,
            # Another part follows one whose bundle is not the session's last.
            merged=publication is not None and not publication.final,
        )


def _lost_description(number: int) -> SessionDescription:
    """Return a description in place of a lost one."""
    return SessionDescription(
        session=f"number {number}",
        graph=LOST,
        constraints=NO_CONSTRAINTS,
        adapter_provenance=LOST,
        runtime_provenance=LOST,
        engine=LOST,
        labels={},
        peer=None,
        opened_at="",
        program="",
    )
