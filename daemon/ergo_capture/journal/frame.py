"""Frames, the unit of the journal, sans-I/O. This module specifies the format.

A segment is frames one after the other, each at a multiple of 8 bytes; after the last one there are zeros or the end of
the file. A frame is a header of 64 bytes, a body, and zeros up to the next multiple of 8. All numbers are little-endian
and unsigned. A frame of a later format version, or of an unknown kind that may not be skipped, needs a newer program:

    offset  size  field
         0     4  magic, the bytes "ergJ"
         4     1  format version: 2; 1 in segments that 0.1.0 wrote, which have no OUTCOME and ACK frames, and rows
                  of decisions only
         5     1  kind (FrameKind)
         6     2  flags; bit 0: a reader that does not know the kind may skip the frame
         8     8  segment: number of the segment's file. Bytes of another file that turn up here are not frames.
        16     8  batch: number of the commit that wrote the frame, one higher for each commit, never reused. Batch k + 1
                  is started only after batch k is synced, so a frame of a later batch proves that every earlier batch
                  was durable. That tells a torn end from damage.
        24     8  session: number of the session; 0 for frames about the journal itself
        32     8  first: index in the session of the first event or decision in the body
        40     4  count: events or decisions in the body
        44     4  length of the body in bytes
        48     4  index: position of the frame in its batch, from 0
        52     4  frames: number of frames in the batch. With the index it tells whether a bad frame belongs to the
                  batch before it or to the next one.
        56     4  CRC-32C of the body
        60     4  CRC-32C of the 60 bytes before. A length is used only if this checksum is right.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

MAGIC: Final = b"ergJ"
#: The version that is written; it and those before it are read.
FORMAT_VERSION: Final = 2
ALIGNMENT: Final = 8
#: Longest body, in bytes; a header with a greater length is not valid.
MAX_BODY: Final = 64 << 20
IGNORABLE: Final = 1

_HEADER: Final = struct.Struct("<4sBBHQQQQIIIII")
HEADER_BYTES: Final = _HEADER.size + 4
_CRC: Final = struct.Struct("<I")
#: The bytes of a header that its checksum covers.
CHECKED_BYTES: Final = _HEADER.size
OFFSET_BITS: Final = 32
_PADDING: Final = tuple(bytes(size) for size in range(ALIGNMENT))


class FrameKind(IntEnum):
    """The kind of a frame, which says how its body is read."""

    #: A session begins: ``payloads.SessionDescription``.
    OPEN = 1
    #: Event lines as they were received: ``lines``.
    EVENTS = 2
    #: Decision rows: ``decision_rows``.
    DECISIONS = 3
    #: A part of a session ended: ``payloads.Rotation``; ``first`` is the index of the next part's first event.
    ROTATE = 4
    #: A session ended: ``payloads.Closing``; ``first`` is the number of its events that are decided or refused,
    #: ``count`` the number of those after them, which are left over.
    CLOSE = 5
    #: A bundle is durable: ``payloads.Publication``; ``first`` is the part's number, ``count`` 1 for the last part.
    PUBLISHED = 6
    #: The journal was closed in order; nothing follows in the segment.
    SEAL = 7
    #: First frame of every segment: ``payloads.SegmentHead``.
    SEGMENT = 8
    #: The batches before were synced. Written by a start that cuts off a torn end after damage, or removes a segment:
    #: without what it removes, the damage would look like a torn end.
    PROOF = 9
    #: Acknowledged events are missing: ``payloads.Loss``. It may be skipped: ergo-capture 0.1.0 does not know it.
    LOSS = 10
    #: The session is quarantined and not in this journal any more: ``repair/quarantine.py``. May be skipped, as LOSS.
    ASIDE = 11
    #: An episode ran and its decision is not complete yet: ``payloads.Outcome``; ``first`` is its event's index.
    OUTCOME = 12
    #: An intent of that episode was acknowledged: ``payloads.Ack``; ``first`` is the event's index.
    ACK = 13


class Position(NamedTuple):
    """The position of a frame: its segment and its offset in bytes."""

    segment: int
    offset: int

    def pack(self) -> int:
        """Return the position as one 64-bit number; packed positions sort like positions."""
        return self.segment << OFFSET_BITS | self.offset

    @classmethod
    def unpack(cls, packed: int) -> Position:
        """Return the position that was packed."""
        return cls(packed >> OFFSET_BITS, packed & (1 << OFFSET_BITS) - 1)


class PendingFrame:
    """A frame without a place in the journal yet."""

    __slots__ = ("body", "count", "first", "kind", "session", "size")

    def __init__(self, kind: FrameKind, session: int, first: int, count: int, body: bytes) -> None:
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of {len(body)} bytes is longer than {MAX_BODY}")
        self.kind = kind
        self.session = session
        self.first = first
        self.count = count
        self.body = body
        #: Bytes of the whole frame in a segment.
        self.size = frame_bytes(len(body))

    def encode(self, segment: int, batch: int, index: int, frames: int) -> tuple[bytes, bytes, bytes]:
        """Return header, body and padding for one place in the journal."""
        body = self.body
        length = len(body)
        header = encode_header(
            self.kind,
            segment,
            batch,
            self.session,
            self.first,
            self.count,
            length,
            index,
            frames,
            crc32c(body),
            flags=IGNORABLE if self.kind in (FrameKind.LOSS, FrameKind.ASIDE) else 0,
        )
        return header, body, _PADDING[-length % ALIGNMENT]


class Header(msgspec.Struct, frozen=True, gc=False):
    """The header of a frame whose checksum is right."""

    version: int
    kind: int
    flags: int
    segment: int
    batch: int
    session: int
    first: int
    count: int
    length: int
    index: int
    frames: int
    body_crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole frame, padding included."""
        return frame_bytes(self.length)

    @property
    def last_in_batch(self) -> bool:
        """Whether this is the last frame of its batch."""
        return self.index + 1 == self.frames

    def fits(self, body: bytes | memoryview) -> bool:
        """Return whether the body has the length and checksum of the header."""
        return len(body) == self.length and crc32c(body) == self.body_crc


class Frame(msgspec.Struct, frozen=True):
    """A whole frame; both checksums are right."""

    header: Header
    body: bytes


def encode_header(
    kind: int,
    segment: int,
    batch: int,
    session: int,
    first: int,
    count: int,
    length: int,
    index: int,
    frames: int,
    body_crc: int,
    *,
    flags: int = 0,
    version: int = FORMAT_VERSION,
) -> bytes:
    """Return the 64 bytes of a header, with its checksum."""
    head = _HEADER.pack(
        MAGIC, version, kind, flags, segment, batch, session, first, count, length, index, frames, body_crc
    )
    return head + _CRC.pack(crc32c(head))


#: Unpacks the fields of a header, from the magic to its own checksum, without checks: for a million frames,
#: ``decode_header`` is most of the work.
unpack_header: Final = struct.Struct(_HEADER.format + "I").unpack_from


def frame_bytes(length: int) -> int:
    """Return the size in bytes of a frame with a body of ``length`` bytes."""
    return HEADER_BYTES + length + -length % ALIGNMENT


def decode_header(data: bytes | memoryview, segment: int) -> Header | None:
    """Return the header at the start of ``data``; None where there is no valid header of that segment."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    head = bytes(data[: _HEADER.size])
    if crc32c(head) != _CRC.unpack_from(data, _HEADER.size)[0]:
        return None
    _, *fields = _HEADER.unpack(head)
    header = Header(*fields)
    if header.segment != segment or header.length > MAX_BODY or header.index >= header.frames:
        return None
    return header
