"""Frames: the bytes of a header, and the validity of headers."""

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


def test_a_header_has_the_layout_of_the_specification() -> None:
    """The bytes are those in the docstring of the module."""
    frame = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"two\nlines\n")
    header, body, padding = frame.encode(3, 41, 1, 5)
    written = struct.pack("<4sBBHQQQQIIIII", b"ergJ", 2, 2, 0, 3, 41, 7, 1000, 2, 10, 1, 5, crc32c(b"two\nlines\n"))
    assert header == written + struct.pack("<I", crc32c(written))
    assert (body, padding) == (b"two\nlines\n", bytes(6))
    assert frame.size == len(header) + len(body) + len(padding) == 80


def test_a_decoded_header_has_the_fields_that_were_encoded() -> None:
    """The body is checked against it."""
    header_bytes, body, _ = PendingFrame(FrameKind.DECISIONS, 7, 1 << 40, 2, b"[]").encode(3, 1 << 50, 1, 5)
    header = decode_header(header_bytes, 3)
    assert header is not None
    assert (header.kind, header.session, header.first, header.count) == (FrameKind.DECISIONS, 7, 1 << 40, 2)
    assert (header.segment, header.batch, header.index, header.frames) == (3, 1 << 50, 1, 5)
    assert header.fits(body)
    assert not header.fits(b"{}")
    assert not header.fits(b"[]\0")


def test_a_header_with_a_changed_bit_is_not_valid() -> None:
    """Any of the 512 bits may be changed."""
    whole, _, _ = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"body").encode(3, 41, 1, 5)
    for bit in range(HEADER_BYTES * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_header(bytes(changed), 3) is None, f"bit {bit}"


def test_a_header_of_another_segment_is_not_valid() -> None:
    """Bytes of another file may turn up in a segment."""
    header, _, _ = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"body").encode(3, 41, 1, 5)
    assert decode_header(header, 4) is None


@pytest.mark.parametrize(("length", "index", "frames"), [(MAX_BODY + 1, 0, 1), (1 << 31, 0, 1), (4, 1, 1), (4, 0, 0)])
def test_a_header_with_an_impossible_length_or_index_is_not_valid(length: int, index: int, frames: int) -> None:
    """The checksum is right."""
    assert decode_header(encode_header(2, 3, 41, 7, 0, 1, length, index, frames, 0), 3) is None


def test_a_body_longer_than_the_bound_is_refused() -> None:
    """Writers and readers have the same bound."""
    with pytest.raises(ValueError, match="longer than"):
        PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(MAX_BODY + 1))


@pytest.mark.parametrize("length", range(20))
def test_the_size_of_a_frame_is_a_multiple_of_eight(length: int) -> None:
    """The length of the body does not matter."""
    frame = PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(length))
    assert frame.size == frame_bytes(length) == sum(map(len, frame.encode(1, 1, 0, 1)))
    assert frame.size % 8 == 0


@pytest.mark.parametrize("kind", FrameKind)
def test_only_frames_that_0_1_0_may_skip_are_flagged_so(kind: FrameKind) -> None:
    """It knows the others, or cannot go on without them."""
    header = decode_header(PendingFrame(kind, 1, 0, 0, b"{}").encode(1, 1, 0, 1)[0], 1)
    assert header is not None
    assert header.flags == (1 if kind in (FrameKind.LOSS, FrameKind.ASIDE) else 0)


def test_a_header_says_whether_its_frame_is_the_last_of_its_batch() -> None:
    """The index and the number of frames tell it."""
    headers = [decode_header(PendingFrame(FrameKind.OPEN, 1, 0, 0, b"").encode(1, 1, at, 3)[0], 1) for at in range(3)]
    assert [header and header.last_in_batch for header in headers] == [False, False, True]


def test_bytes_that_are_shorter_than_a_header_are_not_valid() -> None:
    """Bytes without the magic are not valid either."""
    whole, _, _ = PendingFrame(FrameKind.EVENTS, 7, 1000, 2, b"body").encode(3, 41, 1, 5)
    assert decode_header(memoryview(whole + b"body"), 3) == decode_header(whole, 3) is not None
    assert decode_header(whole[:-1], 3) is None
    other = b"ergK" + whole[4:60]
    assert decode_header(other + struct.pack("<I", crc32c(other)), 3) is None


def test_a_body_may_be_as_long_as_the_bound() -> None:
    """This holds for the writer and for the reader."""
    frame = PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(MAX_BODY))
    assert frame.size == MAX_BODY + HEADER_BYTES
    header = decode_header(encode_header(2, 3, 41, 7, 0, 1, MAX_BODY, 0, 1, 0), 3)
    assert header is not None
    assert (header.length, header.version, header.flags) == (MAX_BODY, 2, 0)
