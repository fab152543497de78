"""What is left of a session in a journal: what it was, how long, and which parts it had."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ergo_capture.journal.frame import Frame, FrameKind, Header, Position
from ergo_capture.journal.reader import Window, read_frames
from ergo_capture.journal.scan_report import Damage, ScanReport, SessionFrames
from ergo_capture.journal.segment import segment_path
from ergo_capture.journal.session_frames import read_history
from ergo_capture.kernel.constraints import NO_CONSTRAINTS
from ergo_capture.repair.report import LOST, BundleHead
from ergo_capture.storage import Storage


class PartRange(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a part, by index in the session: from ``first`` to before ``end``."""

    part: int
    first: int
    end: int
    ended: str
    ended_at: str
    forced: bool
    #: Whether there may have been more.
    uncertain: bool
    #: Whether it is more than one part, because what parted them is gone; the first one's number stands for all.
    merged: bool


class PartialSession:
    """One session, as far as its frames say."""

    def __init__(self, directory: Path, scan: ScanReport, frames: SessionFrames, storage: Storage) -> None:
        self.directory = directory
        self.frames = frames
        self.storage = storage
        history = read_history(directory, frames, storage)
        self.description = history.description
        self.rotations = history.rotations
        self.publications = history.publications
        self.closing = history.closing
        #: Index after the last event that is known to have been there; whether there may have been more.
        self.total = 0
        self.uncertain = False
        self._reckon(scan, history.total)

    @property
    def name(self) -> str:
        """Its id, or its number where that is lost."""
        return f"number {self.frames.number}" if self.description is None else self.description.session

    @property
    def graph(self) -> str:
        """Its graph, or that this is lost."""
        return LOST if self.description is None else self.description.graph

    @property
    def head(self) -> BundleHead:
        """What its bundles say besides events and decisions."""
        description = self.description
        if description is None:
            return BundleHead(LOST, NO_CONSTRAINTS, LOST, LOST)
        return BundleHead(
            description.graph,
            description.constraints,
            description.adapter_provenance,
            description.runtime_provenance,
        )

    # --- what the session is, and how long it was ---

    def _frame(self, position: Position) -> Frame:
        (frame,) = read_frames(self.directory, [position], self.storage)
        return frame

    def _reckon(self, scan: ScanReport, total: int | None) -> None:
        """How many events there were, as far as anything says."""
        frames = self.frames
        ends = [end.boundary for end in self.rotations]
        for packed in (frames.events, frames.decisions):
            if packed:
                header = self._frame(Position.unpack(packed[-1])).header
                ends.append(header.first + header.count)
        if total is not None:
            self.total = total
            return
        # Where what came before is accounted for. Why not decisions: they tell nothing of events not decided yet.
        reckoned = [0, *frames.events[-1:], *([] if frames.open is None else [frames.open.pack()])]
        closed = False
        for damage in scan.damage:
            if frames.number not in damage.sessions:
                continue
            there = self._header_at(damage)
            if there is None:
                continue
            if there.kind in (FrameKind.EVENTS, FrameKind.DECISIONS):
                ends.append(there.first + there.count)
            elif there.kind in (FrameKind.CLOSE, FrameKind.ROTATE):
                ends.append(there.first)
            if there.kind == FrameKind.EVENTS:
                reckoned.append(Position(damage.segment, damage.offset).pack())
            closed |= there.kind == FrameKind.CLOSE
        self.total = max(ends, default=0)
        if scan.unattributed and not closed:
            doubt = scan.unattributed[-1]
            self.uncertain = Position(doubt.segment, doubt.offset).pack() > max(reckoned)

    def _header_at(self, damage: Damage) -> Header | None:
        """The header of a frame whose body is bad, if that is what the damage is."""
        file = self.storage.open(segment_path(self.directory, damage.segment))
        try:
            header = Window(file).header(damage.offset, damage.segment)
        finally:
            file.close()
        return header if header is not None and header.session == self.frames.number else None

    # --- its parts ---

    def stretches(self) -> Iterator[PartRange]:
        """The parts of it, in order."""
        frames = self.frames
        first, part, unknown = 0, 1, 0
        if frames.open is None and self.rotations:
            part = self.rotations[0].rotation.part
            if part > 1:
                # What said where it begins is gone, too: from what is there on, and nothing tells what was before.
                first = min(self._first_of(frames.events), self.rotations[0].boundary)
                unknown = part
        for rotation, end, _ in self.rotations:
            # Why not those without any event: their bundles are durable, and their segments went.
            if end > first or rotation.part in self.publications:
                yield PartRange(
                    part=part,
                    first=first,
                    end=end,
                    ended="rotated",
                    ended_at=rotation.rotated_at,
                    forced=rotation.forced,
                    uncertain=rotation.part == unknown,
                    merged=rotation.part != part,
                )
            first, part = end, rotation.part + 1
        if self.frames.done and part not in self.publications and self.total <= first:
            return
        closing = self.closing
        ended, at = ("open", "") if closing is None else (closing.ended, closing.closed_at)
        publication = self.publications.get(part)
        yield PartRange(
            part=part,
            first=first,
            end=max(first, self.total),
            ended=ended,
            ended_at=at,
            forced=False,
            uncertain=self.uncertain,
            # Why it tells: after a bundle that is not the last one there is another part.
            merged=publication is not None and not publication.final,
        )

    def _first_of(self, packed: array[int]) -> int:
        return self._frame(Position.unpack(packed[0])).header.first if packed else self.total

    def __repr__(self) -> str:
        return f"<PartialSession of {self.name}, {self.total} events or more>"
