"""Two bundles whose texts are the same are found so without a look at every record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.bundle.test_proving import bundles, changed, changes
from tests.bundle.test_stream import rich_bundle
from tests.bundles import small_bundle

from ergo_capture import CaptureBundle, CaptureJsonStyle, encode_bundle
from ergo_capture.bundle import diff
from ergo_capture.bundle.diff import compare
from ergo_capture.bundle.reader import elements
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.errors import ErgoCaptureError


def compared(a: bytes, b: bytes, *, by_text: bool) -> Any:
    """Return how two bundles differ, or the error's message; without ``by_text`` by their records alone."""
    with pytest.MonkeyPatch.context() as patch:
        if not by_text:
            patch.setattr(diff, "_same_text", lambda _a, _b: None)
        try:
            with BundleStream(text=a) as one, BundleStream(text=b) as other:
                return compare(one, other)
        except ErgoCaptureError as error:
            return error.message


@example(small_bundle(), [("events.payload", 0, b'{"a":"\xff"}')], CaptureJsonStyle.Compact, 50)
@given(bundles, changes, st.sampled_from(CaptureJsonStyle), st.sampled_from([50, 1 << 15]))
def test_texts_and_records_give_the_same_difference(
    bundle: CaptureBundle, changes: list[tuple[str, int, Any]], style: CaptureJsonStyle, block: int
) -> None:
    """Whether they are the same, differ, or are malformed alike."""
    one, other = encode_bundle(bundle, style), changed(bundle, style, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_BLOCK", block)
        for a, b in ((one, other), (other, one), (other, other)):
            assert compared(a, b, by_text=True) == compared(a, b, by_text=False)


def test_a_bundle_and_its_copy_are_compared_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record of them is compared."""
    for style in CaptureJsonStyle:
        path = tmp_path / "b"
        path.write_bytes(encode_bundle(rich_bundle(100), style))
        monkeypatch.setattr(diff, "_pairs", None)
        with BundleStream(path) as a, BundleStream(path) as b:
            found = compare(a, b)
        assert found.none
        assert found.common == 100
