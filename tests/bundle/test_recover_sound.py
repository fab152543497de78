"""A sound bundle is recovered block by block, with the same result as event by event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bundle.test_proving import bundles, changed, changes
from tests.bundle.test_stream import rich_bundle

from ergo_capture import CaptureBundle, CaptureJsonStyle, encode_bundle
from ergo_capture.bundle.reader import elements
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.repair import damaged_bundle
from ergo_capture.repair.damaged_bundle import salvage_bundle
from ergo_capture.repair.output import rest_path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory."""
    return tmp_path_factory.mktemp("recover")


def recovered(source: Path, *, by_blocks: bool) -> Any:
    """Return what a salvage keeps and its files, or the error's message."""
    out = source.with_name("out.capture.json")
    with pytest.MonkeyPatch.context() as patch:
        if not by_blocks:
            patch.setattr(damaged_bundle, "_copy_sound", lambda _path, _destination: None)
        try:
            saved = salvage_bundle(source, out)
            files = [path.read_bytes() if path.exists() else None for path in (out, rest_path(out))]
        except ErgoCaptureError as error:
            return error.message
        finally:
            for path in (out, rest_path(out)):
                path.unlink(missing_ok=True)
    assert list(source.parent.iterdir()) == [source]
    return saved, files


@settings(max_examples=60)
@given(bundles, changes, st.sampled_from(CaptureJsonStyle), st.sampled_from([60, 1 << 15]))
def test_both_ways_keep_the_same(
    place: Path, bundle: CaptureBundle, changes: list[tuple[str, int, Any]], style: CaptureJsonStyle, block: int
) -> None:
    """This holds for sound bundles in either style, and for damaged ones."""
    source = place / "source.json"
    source.write_bytes(changed(bundle, style, changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_BLOCK", block)
        assert recovered(source, by_blocks=True) == recovered(source, by_blocks=False)


@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_a_sound_bundle_needs_no_look_at_each_event(
    style: CaptureJsonStyle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is the compact bundle, with effects, failures, pumps and deferrals."""
    bundle = rich_bundle(200)
    source, out = tmp_path / "source.json", tmp_path / "out.json"
    source.write_bytes(encode_bundle(bundle, style))
    monkeypatch.setattr(damaged_bundle, "salvage", None)
    assert salvage_bundle(source, out).whole
    assert out.read_bytes() == encode_bundle(bundle)
