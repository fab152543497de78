"""The digest of what the context store gave to a bundle's events."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

from tests.bundles import NOW, manifest_of

from ergo_capture.bundle.manifest import encode_manifest, read_manifest, read_manifest_fields, read_sequence
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.config.settings import LimitsConfig


def test_the_digest_is_that_of_the_documented_bytes() -> None:
    """Index, number of keys, then each key by its length."""
    digest = MergedDigest()
    digest.add(0, ())
    digest.add(2, ("a", "\u00e9t\u00e9"))
    digest.add(300, ("n",))
    records = (
        b"\0\0\0\0\0\0\0\2" + b"\0\0\0\2" + b"\0\0\0\1" + b"a" + b"\0\0\0\5" + "\u00e9t\u00e9".encode(),
        b"\0\0\0\0\0\0\1\x2c" + b"\0\0\0\1" + b"\0\0\0\1" + b"n",
    )
    assert digest.hexdigest() == hashlib.sha256(b"".join(records)).hexdigest()


def test_events_without_a_key_add_nothing() -> None:
    """A bundle of a graph that writes nothing thus has a digest too."""
    digest = MergedDigest()
    for index in range(3):
        digest.add(index, ())
    assert digest.hexdigest() == hashlib.sha256().hexdigest()


def test_a_manifest_holds_the_largest_store_that_may_be_configured(tmp_path: Path) -> None:
    """A series of the shortest numbers, which take the most lines."""
    store = {"v": [0.0] * (int(LimitsConfig.MAXIMUM["context_bytes"]) // len("0.0,") - 10)}
    bundle, path = tmp_path / "s.capture.json", tmp_path / "s.manifest.json"
    bundle.touch()
    manifest = manifest_of(bundle, b"", "g", NOW, part=2, store=store)
    path.write_bytes(encode_manifest(manifest, salvage={"lost": 1}))
    assert read_manifest(path) == manifest
    assert read_manifest_fields(path)["salvage"] == {"lost": 1}


def test_a_small_manifest_is_read_without_room_for_the_largest(tmp_path: Path) -> None:
    """Manifests are read by the ten thousand, and memory of that size is got from the system each time."""
    path = tmp_path / "S.manifest.json"
    path.write_bytes(b'{"sequence": 7}')
    assert read_sequence(path) == 7
    tracemalloc.start()
    try:
        assert read_sequence(path) == 7
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
