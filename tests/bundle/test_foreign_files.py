"""A file that is not a bundle is identified, with a hint; a damaged bundle is not taken for another kind of file."""

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
        (b"ergJ\0\1\2\3\xff\xfe", "it is not text"),
        (("é" * 5000).encode(), "it is not a JSON object"),
        (b"# notes\n", "it is not a JSON object"),
        (b'{"event_id":"a","kind":"Command","at":{"secs":1,"nanos":0}}\n', "these are events"),
        (b'{ "type":"hello","protocol":"ergo-driver.v0"}\n', "these are events"),
        (b'{"format":"ergo-capture-manifest.v1","session":"s"}', "it is a bundle's manifest"),
    ],
)
def test_a_file_that_is_not_a_bundle_is_identified(text: bytes, said: str, tmp_path: Path) -> None:
    """The message and hint are the same for bytes and for a file."""
    path = tmp_path / "x.capture.json"
    path.write_bytes(text)
    with pytest.raises(BundleFormatError, match=said) as whole:
        decode_bundle(text)
    with pytest.raises(BundleFormatError, match=said) as streamed:
        open_bundle(path)
    assert whole.value.hint == streamed.value.hint


@pytest.mark.parametrize("place", [20, len(BUNDLE) // 2])
def test_a_damaged_bundle_is_reported_with_its_position(place: int) -> None:
    """P6: a byte that is not UTF-8 inside a bundle does not make it another kind of file."""
    with pytest.raises(BundleFormatError, match=f"position {place}") as caught:
        decode_bundle(BUNDLE[:place] + b"\xff" + BUNDLE[place + 1 :])
    assert "recover" in (caught.value.hint or "")
