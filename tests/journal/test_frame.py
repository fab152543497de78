"""Frames: the bytes of a header, and which bytes are one."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c

from ergo_capture.journal.frame import (
    HEADER_BYTES,
    MAX_BODY,
    FrameKind,
    PendingFrame,
    decode_header,
    encode_header,
    frame_bytes,
)


def test_a_header_is_what_the_specification_says_byte_for_byte() -> None:
    """The layout in the module's docstring is the layout on disk."""
    frame = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"two\nlines\n")
    header, body, padding = frame.encode(3, 41, 1, 5)
    written = struct.pack("<4sBBHQQQQIIIII", b"ergJ", 1, 2, 0, 3, 41, 7, 1000, 2, 10, 1, 5, crc32c(b"two\nlines\n"))
    assert header == written + struct.pack("<I", crc32c(written))
    assert (body, padding) == (b"two\nlines\n", bytes(6))
    assert frame.size == len(header) + len(body) + len(padding) == 80


def test_a_header_comes_back_as_it_went_in() -> None:
    """Every field survives, and the body is checked against it."""
    header_bytes, body, _ = PendingFrame(FrameKind.DECISIONS, 7, 1 << 40, 2, b"[]").encode(3, 1 << 50, 1, 5)
    header = decode_header(header_bytes, 3)
    assert header is not None
    assert (header.kind, header.session, header.first, header.count) == (FrameKind.DECISIONS, 7, 1 << 40, 2)
    assert (header.segment, header.batch, header.index, header.frames) == (3, 1 << 50, 1, 5)
    assert header.fits(body)
    assert not header.fits(b"{}")
    assert not header.fits(b"[]\0")


def test_no_header_survives_a_changed_bit() -> None:
    """The header's checksum covers all of its other bytes, and itself."""
    whole, _, _ = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"body").encode(3, 41, 1, 5)
    for bit in range(HEADER_BYTES * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_header(bytes(changed), 3) is None, f"bit {bit}"


def test_a_header_of_another_segment_is_none() -> None:
    """Bytes of another file that turn up here are never mistaken for frames."""
    header, _, _ = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"body").encode(3, 41, 1, 5)
    assert decode_header(header, 4) is None


@pytest.mark.parametrize(("length", "index", "frames"), [(MAX_BODY + 1, 0, 1), (1 << 31, 0, 1), (4, 1, 1), (4, 0, 0)])
def test_a_header_that_says_the_impossible_is_none(length: int, index: int, frames: int) -> None:
    """A right checksum does not make a lying length or place true."""
    assert decode_header(encode_header(2, 3, 41, 7, 0, 1, length, index, frames, 0), 3) is None


def test_a_body_that_no_reader_would_take_is_not_written() -> None:
    """The bound on bodies holds on both sides."""
    with pytest.raises(ValueError, match="longer than"):
        PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(MAX_BODY + 1))


@pytest.mark.parametrize("length", range(20))
def test_a_frame_ends_where_the_next_one_may_begin(length: int) -> None:
    """Frames take a multiple of eight bytes, whatever their bodies take."""
    frame = PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(length))
    assert frame.size == frame_bytes(length) == sum(map(len, frame.encode(1, 1, 0, 1)))
    assert frame.size % 8 == 0
