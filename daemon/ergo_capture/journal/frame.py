"""Frames: the journal's unit, sans-I/O. This module is the format's specification.

A segment is frames one after the other, each at a multiple of 8 bytes; after the last one there are zeros or
the end of the file. A frame is a header of 64 bytes, a body, and zeros up to the next multiple of 8. All
numbers are little-endian and unsigned. A frame of an unknown kind that may not be skipped, or of a later
format version, needs a newer program:

    offset  size  field
         0     4  magic, the bytes "ergJ"
         4     1  format version, 1
         5     1  kind (FrameKind)
         6     2  flags; bit 0: a reader that does not know the kind may skip the frame
         8     8  segment: sequence number of the segment's file.
                  Why: bytes of another file that turn up here are never mistaken for frames.
        16     8  batch: number of the commit the frame belongs to, never reused, one higher for each commit.
                  Why: batch k + 1 is started only after batch k is synced, so a frame of a later batch proves
                  that every earlier batch was durable. That is what tells a torn tail from damage.
        24     8  session: the session's number; 0 for frames about the journal itself
        32     8  first: index in the session of the first event or decision in the body
        40     4  count: events or decisions in the body
        44     4  length of the body in bytes
        48     4  index: position of the frame in its batch, from 0
        52     4  frames: how many frames the batch has.
                  Why both: they tell whether a bad frame belongs to the batch before it or to the next one.
        56     4  CRC-32C of the body
        60     4  CRC-32C of the 60 bytes before.
                  Why its own: a length is only believed when it is certainly the one that was written.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

MAGIC: Final = b"ergJ"
FORMAT_VERSION: Final = 1
ALIGNMENT: Final = 8
#: Longest body, in bytes; a header that says more is not one.
MAX_BODY: Final = 64 << 20
IGNORABLE: Final = 1

_HEADER: Final = struct.Struct("<4sBBHQQQQIIIII")
HEADER_BYTES: Final = _HEADER.size + 4
_CRC: Final = struct.Struct("<I")
_OFFSET_BITS: Final = 32
_PADDING: Final = tuple(bytes(size) for size in range(ALIGNMENT))


class FrameKind(IntEnum):
    """What a frame's body is."""

    #: A session begins: ``body.SessionDescription``.
    OPEN = 1
    #: Event lines, verbatim: ``lines``.
    EVENTS = 2
    #: Decision rows: ``body.DecisionRows``.
    DECISIONS = 3
    #: A part of a session ended: ``body.Rotation``.
    ROTATE = 4
    #: A session ended: ``body.Closing``; ``first`` is its number of events and decisions.
    CLOSE = 5
    #: A bundle is durable: ``body.Publication``; ``first`` is the part's number, ``count`` 1 for the last part.
    PUBLISHED = 6
    #: The journal was closed in order; nothing follows.
    SEAL = 7
    #: First frame of every segment: ``segment.SegmentHead``.
    SEGMENT = 8
    #: A start cut a torn end off behind damage, or removed a segment: the batches before were synced.
    #: Why: what it took away was all that told the damage from a torn end.
    PROOF = 9


class Position(NamedTuple):
    """Where a frame is."""

    segment: int
    offset: int

    def pack(self) -> int:
        """The position as one 64-bit number; packed positions sort like positions."""
        return self.segment << _OFFSET_BITS | self.offset

    @classmethod
    def unpack(cls, packed: int) -> Position:
        """The position that was packed."""
        return cls(packed >> _OFFSET_BITS, packed & (1 << _OFFSET_BITS) - 1)


class PendingFrame:
    """A frame that has no place in the journal yet."""

    __slots__ = ("body", "count", "first", "kind", "session", "size")

    def __init__(self, kind: FrameKind, session: int, first: int, count: int, body: bytes) -> None:
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of {len(body)} bytes is longer than {MAX_BODY}")
        self.kind = kind
        self.session = session
        self.first = first
        self.count = count
        self.body = body
        #: Bytes it will take in a segment.
        self.size = frame_bytes(len(body))

    def encode(self, segment: int, batch: int, index: int, frames: int) -> tuple[bytes, bytes, bytes]:
        """Header, body and padding, for one place in the journal."""
        body = self.body
        length = len(body)
        header = encode_header(
            self.kind, segment, batch, self.session, self.first, self.count, length, index, frames, crc32c(body)
        )
        return header, body, _PADDING[-length % ALIGNMENT]

    def __repr__(self) -> str:
        return f"<PendingFrame {self.kind.name} of session {self.session}, {self.count} from {self.first}>"


class Header(msgspec.Struct, frozen=True, gc=False):
    """A frame's header, once its checksum has been found right."""

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
        """Whether the batch ends with this frame."""
        return self.index + 1 == self.frames

    def fits(self, body: bytes | memoryview) -> bool:
        """Whether the body is the one the header was made for."""
        return len(body) == self.length and crc32c(body) == self.body_crc


class Frame(msgspec.Struct, frozen=True):
    """A whole frame, checked."""

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
    """The 64 bytes of a header, its checksum included."""
    head = _HEADER.pack(
        MAGIC, version, kind, flags, segment, batch, session, first, count, length, index, frames, body_crc
    )
    return head + _CRC.pack(crc32c(head))


def frame_bytes(length: int) -> int:
    """Bytes that a frame with a body of ``length`` bytes takes."""
    return HEADER_BYTES + length + -length % ALIGNMENT


def decode_header(data: bytes | memoryview, segment: int) -> Header | None:
    """The header at the start of ``data``, or None where there is none of that segment."""
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
