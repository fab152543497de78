"""Read a session's frames other than events and decisions: its description, its parts and its end.

Recovery, session streams and salvage all read these frames here. A frame whose body cannot be decoded is left out and
reported in ``SessionHistory.damage``; the caller decides whether that is an error.

OPEN, or ROTATE with its PUBLISHED, may be repeated while the part that it begins has no events, so that the segments
with the earlier frames can be deleted. The last frame counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ergo_capture.journal.frame import Frame, FrameKind, Position
from ergo_capture.journal.payloads import (
    Ack,
    Closing,
    Loss,
    Outcome,
    Publication,
    Rotation,
    SessionDescription,
    join_losses,
)
from ergo_capture.journal.reader import read_frames, undecodable
from ergo_capture.journal.scan_report import ScanReport, SessionFrames
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.storage import Storage


class PartEnd(NamedTuple):
    """The end of a part, from its ROTATE frame."""

    rotation: Rotation
    #: Index in the session of the first event of the next part.
    boundary: int
    #: Where the ROTATE frame is.
    position: Position


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """An episode that has run and whose decision is not complete: the intents without an ack are still to be sent."""

    outcome: Outcome
    #: The acknowledgements so far, in order; these intents are not sent again.
    acks: tuple[CapturedIntentAck, ...] = ()


@dataclass(slots=True)
class SessionHistory:
    """The content of a session's frames other than events and decisions."""

    #: The damage of the session: that of the scan, or else a frame that cannot be decoded. None for none.
    damage: str | None
    #: None where the frames that hold it were deleted with their segments, or cannot be decoded.
    description: SessionDescription | None = None
    #: The ends of parts, in order.
    rotations: list[PartEnd] = field(default_factory=list)
    #: The durable bundles, by part number.
    publications: dict[int, Publication] = field(default_factory=dict)
    #: The closing of the session; None if it was not closed.
    closing: Closing | None = None
    #: Events of the session that are decided or refused, from its CLOSE frame; None without that frame.
    total: int | None = None
    #: The losses of acknowledged events, in order, each with the position of its frame.
    losses: list[tuple[Position, Loss]] = field(default_factory=list)
    #: The outcome of the first undecided event; None where there is none.
    outcome: PendingOutcome | None = None

    def lost_until(self, part: int) -> Loss | None:
        """Return the loss of events up to the end of the part, or up to now if it has not ended; None for none."""
        end = next((end.position for end in self.rotations if end.rotation.part == part), None)
        told = [(end.position, end.rotation.description.lost) for end in self.rotations]
        lost = None if self.description is None else self.description.lost
        for position, loss in sorted([*told, *self.losses], key=lambda each: each[0]):
            if loss is not None and (end is None or position <= end):
                lost = join_losses(lost, loss)
        return lost


_Body = SessionDescription | Rotation | Closing | Publication | Loss | Outcome | Ack
_DECODERS: Final[dict[int, msgspec.json.Decoder[_Body]]] = {
    FrameKind.OPEN: msgspec.json.Decoder(SessionDescription),
    FrameKind.ROTATE: msgspec.json.Decoder(Rotation),
    FrameKind.CLOSE: msgspec.json.Decoder(Closing),
    FrameKind.PUBLISHED: msgspec.json.Decoder(Publication),
    FrameKind.LOSS: msgspec.json.Decoder(Loss),
    FrameKind.OUTCOME: msgspec.json.Decoder(Outcome),
    FrameKind.ACK: msgspec.json.Decoder(Ack),
}


def read_history(directory: Path, frames: SessionFrames, storage: Storage) -> SessionHistory:
    """Read the history of a session.

    Args:
        directory: the journal.
        frames: where the session's frames are, from a scan.
        storage: the filesystem.

    Raises:
        JournalDamaged: one of the frames is not whole any more.
        StorageError: a segment cannot be read.
    """
    history = SessionHistory(frames.damage)
    positions = [*_known(frames.open), *frames.rotations, *_known(frames.close), *frames.published, *frames.losses]
    positions += frames.outcome
    for position, frame in zip(positions, read_frames(directory, positions, storage), strict=True):
        _add(history, frame, position)
    return history


def greatest_published(directory: Path, scan: ScanReport, storage: Storage) -> int:
    """Return the greatest ``sequence`` in the PUBLISHED frames of all sessions, 0 where there is none.

    Raises:
        StorageError: a segment cannot be read.
    """
    positions = [position for frames in scan.sessions.values() for position in frames.published]
    greatest = 0
    # Sort by position: the journal is read forward.
    for frame in read_frames(directory, sorted(positions), storage):
        # Skip a frame that cannot be decoded: it is reported as damage of its session.
        with suppress(ValueError):
            greatest = max(greatest, msgspec.json.decode(frame.body, type=Publication).sequence or 0)
    return greatest


def _add(history: SessionHistory, frame: Frame, position: Position) -> None:
    header = frame.header
    if header.kind == FrameKind.CLOSE:
        history.total = header.first
    try:
        body = _DECODERS[header.kind].decode(frame.body)
    except ValueError as error:
        history.damage = history.damage or undecodable(frame, error).message
        return
    match body:
        case SessionDescription():
            history.description = body
        case Rotation():
            if history.rotations and history.rotations[-1].rotation.part == body.part:
                # A repeated frame replaces the earlier one.
                del history.rotations[-1]
            history.rotations.append(PartEnd(body, header.first, position))
            history.description = history.description or body.description
        case Publication():
            history.publications[body.part] = body
        case Closing():
            history.closing = body
        case Loss():
            history.losses.append((position, body))
        case Outcome():
            history.outcome = PendingOutcome(body)
        case Ack():
            pending = history.outcome
            if pending is None or pending.outcome.index != body.index:
                history.damage = history.damage or f"an acknowledgement of event {body.index} has no outcome before it"
            else:
                history.outcome = PendingOutcome(pending.outcome, (*pending.acks, body.ack))


def read_description(frame: Frame) -> SessionDescription:
    """Decode the body of an OPEN frame.

    Raises:
        JournalDamaged: the body is not a session description.
    """
    try:
        return msgspec.json.decode(frame.body, type=SessionDescription)
    except ValueError as error:
        raise undecodable(frame, error) from error


def _known(position: Position | None) -> Iterable[Position]:
    return () if position is None else (position,)
