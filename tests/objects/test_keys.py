"""The keys under which bundles and manifests lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from tests.bundles import NOW, manifest_of

from ergo_capture.bundle.manifest import encode_manifest
from ergo_capture.objects.keys import (
    decode_shipped_manifest,
    encode_shipped_manifest,
    manifest_key,
    object_key,
    parse_manifest_key,
    sha256_of,
)

SHA = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_bundles_key_says_the_hash_of_its_file(compressed: bool) -> None:
    """Whoever has the key can check the object."""
    key = object_key(SHA, compressed=compressed)
    assert key == f"objects/sha256/{SHA[:2]}/{SHA}.capture.json{'.zst' * compressed}"
    assert sha256_of(key) == SHA


@pytest.mark.parametrize(
    "key", ["", "objects", f"objects/sha256/00/{SHA}.capture.json", f"x/{object_key(SHA, compressed=False)}"]
)
def test_other_keys_are_no_bundles(key: str) -> None:
    """Two digits that are not the hash's own are wrong too."""
    assert sha256_of(key) is None


def test_a_manifests_key_has_date_host_session_and_hash() -> None:
    """The date is that of the end, so that a second attempt has the same key."""
    manifest = manifest_of(Path(__file__), b"x", "g", NOW)
    key = manifest_key(manifest, SHA, "S~2", "a/b")
    assert key == f"manifests/date=2026-11-23/host=a%2Fb/S~2.{SHA[:16]}.json"
    assert parse_manifest_key(key) == ("2026-11-23", "a%2Fb", "S~2", SHA[:16])


@pytest.mark.parametrize(
    ("ended_at", "date"),
    [("2026-01-01T01:00:00+02:00", "2025-12-31"), ("2026-01-01T01:00:00", "2026-01-01"), ("never", "0001-01-01")],
)
def test_the_date_is_in_utc(ended_at: str, date: str) -> None:
    """A manifest that says no time has a date of its own."""
    manifest = msgspec.structs.replace(manifest_of(Path(__file__), b"x", "g", NOW), ended_at=ended_at)
    assert manifest_key(manifest, SHA, "S", "h").split("/")[1] == f"date={date}"


def test_a_manifests_object_is_the_same_at_every_attempt_and_keeps_unknown_fields() -> None:
    """A later version's manifest is passed on whole."""
    text = encode_manifest(manifest_of(Path(__file__), b"x", "g", NOW), later={"a": 1})
    content = encode_shipped_manifest("h", "objects/x", text)
    assert content == encode_shipped_manifest("h", "objects/x", text)
    found = decode_shipped_manifest(content)
    assert (found.host, found.key, found.manifest) == ("h", "objects/x", msgspec.json.decode(text))


@pytest.mark.parametrize("text", [b"", b"{}", b'{"host":"h","key":"k","manifest":[]}'])
def test_what_is_no_manifests_object_is_refused(text: bytes) -> None:
    """The error is a ValueError, as for any other bad JSON."""
    with pytest.raises(ValueError, match=r"."):
        decode_shipped_manifest(text)
