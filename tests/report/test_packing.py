"""Pieces that are packed side by side are one text."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.bundle.test_stream import rich_bundle

from ergo_capture import encode_bundle
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.report.packing import Piece, join
from ergo_capture.report.page import report_page


@given(st.lists(st.lists(st.binary(max_size=50), max_size=4), max_size=5))
def test_joined_pieces_unpack_to_their_texts(texts: list[list[bytes]]) -> None:
    """They are in order, though they were written in turns; the checksum is that of the whole."""
    pieces = [Piece() for _ in texts]
    for number in range(4):
        for piece, parts in zip(pieces, texts, strict=True):
            if number < len(parts):
                piece.write(parts[number])
    assert zlib.decompress(join(pieces)) == b"".join(b"".join(parts) for parts in texts)


def test_memory_grows_by_what_the_page_holds(tmp_path: Path) -> None:
    """Ten times as many events, which pack well, take little more."""

    def peak(count: int) -> int:
        path = tmp_path / "b"
        path.write_bytes(encode_bundle(rich_bundle(count, payload=400, limited=False)))
        tracemalloc.start()
        with open_bundle(path) as stream:
            page = report_page(stream, "b")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used - 4 * len(page)

    assert peak(5000) < 1.5 * peak(1000)
