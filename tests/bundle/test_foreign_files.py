"""A file that is no bundle is told for what it is, with what to do; a damaged bundle is not called something else."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from tests.bundles import small_bundle

from ergo_capture import decode_bundle, encode_bundle
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.bundle.reader.stream import open_bundle

BUNDLE = encode_bundle(small_bundle())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (gzip.compress(BUNDLE), "compressed with gzip"),
        (b"ergJ\0\1\2\3\xff\xfe", "it is no text"),
        (("é" * 5000).encode(), "it is no JSON object"),
        (b"# notes\n", "it is no JSON object"),
        (b'{"event_id":"a","kind":"Command","at":{"secs":1,"nanos":0}}\n', "these are events"),
        (b'{ "type":"hello","protocol":"ergo-driver.v0"}\n', "these are events"),
        (b'{"format":"ergo-capture-manifest.v1","session":"s"}', "it is a bundle's manifest"),
    ],
)
def test_what_is_no_bundle_is_told_for_what_it_is(text: bytes, said: str, tmp_path: Path) -> None:
    """The same words from bytes and from a file."""
    path = tmp_path / "x.capture.json"
    path.write_bytes(text)
    with pytest.raises(BundleFormatError, match=said) as whole:
        decode_bundle(text)
    with pytest.raises(BundleFormatError, match=said) as streamed:
        open_bundle(path)
    assert whole.value.hint == streamed.value.hint


@pytest.mark.parametrize("place", [20, len(BUNDLE) // 2])
def test_a_damaged_bundle_is_told_where_it_is_damaged(place: int) -> None:
    """P6: a byte that is no text in the midst of a bundle does not make it a file of another kind."""
    with pytest.raises(BundleFormatError, match=f"position {place}") as caught:
        decode_bundle(BUNDLE[:place] + b"\xff" + BUNDLE[place + 1 :])
    assert "recover" in (caught.value.hint or "")
