"""A receipt proves that a target holds a bundle, if it describes the bundle exactly."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from tests.bundles import store

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.manifest import encode_manifest, read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.receipt import (
    Place,
    Receipt,
    Receipts,
    encode_receipt,
    read_receipt,
    receipt_path,
    receipts_in,
)

PLACE = Place("s3://b/p", "http://e")


def listed(state: Path) -> StoredBundle:
    """Return the one bundle of a state directory, from the catalogue."""
    (bundle,) = Catalogue(state / "bundles").read()
    return bundle


def receipt_of(bundle: Path, **fields: Any) -> Receipt:
    """Return a receipt of a bundle as it is now; ``fields`` replace its own."""
    text = bundle.read_bytes()
    said: dict[str, Any] = {
        "target": "archive",
        "url": PLACE.url,
        "endpoint": PLACE.endpoint,
        "key": "objects/x",
        "bytes": len(text),
        "file_sha256": hashlib.sha256(text).hexdigest(),
        "manifest_key": "manifests/x",
        "manifest_sha256": hashlib.sha256(manifest_path(bundle).read_bytes()).hexdigest(),
        "verified": "read",
        "shipped_at": "2026-11-23T12:00:00Z",
    }
    return Receipt(**(said | fields))


def with_receipt(state: Path, **fields: Any) -> Path:
    """Write a bundle and its receipt."""
    bundle = store(state, "S")
    receipt_path(bundle, "archive").write_bytes(encode_receipt(receipt_of(bundle, **fields)))
    return bundle


def holders(state: Path, **places: Place) -> frozenset[str]:
    """Return the targets that are proven to hold the one bundle of a state directory."""
    return Receipts(places or {"archive": PLACE}).holders(listed(state))


def test_a_receipt_names_the_target_that_holds_a_bundle(tmp_path: Path) -> None:
    """The receipt lies beside the bundle."""
    bundle = with_receipt(tmp_path)
    assert receipt_path(bundle, "archive").name == "S.shipped.archive.json"
    assert holders(tmp_path) == {"archive"}
    assert holders(tmp_path, archive=PLACE, other=PLACE) == {"archive"}


@pytest.mark.parametrize(
    "fields",
    [
        {"bytes": 1},
        {"file_sha256": "0"},
        {"manifest_sha256": "0"},
        {"url": "s3://other"},
        {"endpoint": ""},
        {"target": "other"},
        {"format": "ergo-capture-receipt.v2"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_receipt_that_differs_in_anything_proves_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The bundle is then shipped again."""
    with_receipt(tmp_path, **fields)
    assert holders(tmp_path) == frozenset()


@pytest.mark.parametrize("text", [b"", b"{}", b"[", b"\xff"])
def test_a_receipt_that_cannot_be_read_proves_nothing(tmp_path: Path, text: bytes) -> None:
    """A kill leaves no such receipt, but people do."""
    receipt_path(with_receipt(tmp_path), "archive").write_bytes(text)
    assert holders(tmp_path) == frozenset()


def test_a_bundle_that_was_published_again_is_not_shipped(tmp_path: Path) -> None:
    """Its manifest is a different one."""
    bundle = with_receipt(tmp_path)
    receipts = Receipts({"archive": PLACE})
    assert receipts.holders(listed(tmp_path)) == {"archive"}
    changed = msgspec.structs.replace(read_manifest(manifest_path(bundle)), sequence=7)
    manifest_path(bundle).write_bytes(encode_manifest(changed))
    assert receipts.holders(listed(tmp_path)) == frozenset()


def test_a_deleted_receipt_counts_no_more(tmp_path: Path) -> None:
    """By deleting it, a person has the bundle shipped again."""
    bundle, receipts = with_receipt(tmp_path), Receipts({"archive": PLACE})
    assert receipts.holders(listed(tmp_path)) == {"archive"}
    receipt_path(bundle, "archive").unlink()
    assert receipts.holders(listed(tmp_path)) == frozenset()


def test_a_snapshot_is_never_proven(tmp_path: Path) -> None:
    """Its session goes on."""
    bundle = store(tmp_path, "S", ended="open")
    receipt_path(bundle, "archive").write_bytes(encode_receipt(receipt_of(bundle)))
    assert holders(tmp_path) == frozenset()


def test_a_bundle_that_was_compressed_later_is_proven_by_its_size_and_manifest(tmp_path: Path) -> None:
    """The manifest does not know that file's hash; its text was compared when it was sent."""
    bundle = store(tmp_path, "S")
    compressed = bundle.with_name(bundle.name + ".zst")
    compressed.write_bytes(zstandard.compress(bundle.read_bytes()))
    bundle.unlink()
    receipt_path(bundle, "archive").write_bytes(encode_receipt(receipt_of(compressed)))
    assert holders(tmp_path) == {"archive"}


def test_receipts_of_every_target_are_found_beside_a_bundle(tmp_path: Path) -> None:
    """Receipts of other bundles are not among them."""
    bundle = with_receipt(tmp_path)
    for name in ("S.shipped.other-1.json", "S~2.shipped.archive.json", "S.shipped.UPPER.json"):
        bundle.with_name(name).write_bytes(b"")
    assert {stem: [path.name for path in paths] for stem, paths in receipts_in(bundle.parent).items()} == {
        "S": ["S.shipped.archive.json", "S.shipped.other-1.json"],
        "S~2": ["S~2.shipped.archive.json"],
    }


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    """Looking at many bundles has to be cheap."""
    bundle, receipts = with_receipt(tmp_path), Receipts({"archive": PLACE})
    assert receipts.holders(listed(tmp_path)) == {"archive"}
    path = receipt_path(bundle, "archive")
    status, size = path.stat(), path.stat().st_size
    path.write_bytes(b" " * size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert receipts.holders(listed(tmp_path)) == {"archive"}
    receipts.forget_gone([])
    assert receipts.holders(listed(tmp_path)) == frozenset()


def test_a_pipe_of_that_name_does_not_block(tmp_path: Path) -> None:
    """It is no receipt."""
    os.mkfifo(tmp_path / "p")
    assert read_receipt(tmp_path / "p") is None
