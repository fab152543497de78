"""The keys of bundles and their manifests in a store.

    objects/sha256/ab/<SHA-256 of the file>.capture.json[.zst]
    objects/sha256/ab/<SHA-256 of the file>.rest.jsonl
    manifests/date=YYYY-MM-DD/host=HOST/SESSION[~PART].<16 digits>.json

A bundle's key is made from the hash of its *file*: two compressed forms of one text must not overwrite each other. A
manifest's object is ``{"host", "key", "manifest"}``, and ``rest`` if events were left over: the key of the file that
holds them. It is written after the bundle's object, so a bundle with a manifest is whole. Its date is that of
``ended_at``, and its digits are the first ones of the manifest's SHA-256, so that a second attempt has the same key.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.names import BUNDLE_SUFFIX, COMPRESSED_SUFFIX, REST_SUFFIX, safe_name

OBJECTS: Final = "objects/sha256"
MANIFESTS: Final = "manifests"
CATALOGUE: Final = "catalogue"
RUNS: Final = "runs"
#: The date of a manifest without a time of end.
_NO_DATE: Final = "0001-01-01"
_OBJECT: Final = re.compile(
    rf"{OBJECTS}/(?P<two>[0-9a-f]{{2}})/(?P<sha256>(?P=two)[0-9a-f]{{62}}){re.escape(BUNDLE_SUFFIX)}"
    rf"(?:{re.escape(COMPRESSED_SUFFIX)})?"
)
_REST: Final = re.compile(
    rf"{OBJECTS}/(?P<two>[0-9a-f]{{2}})/(?P<sha256>(?P=two)[0-9a-f]{{62}}){re.escape(REST_SUFFIX)}"
)
_MANIFEST: Final = re.compile(
    rf"{MANIFESTS}/date=(?P<date>\d{{4}}-\d\d-\d\d)/host=(?P<host>[^/]+)/(?P<stem>[^/]+)\.(?P<digits>[0-9a-f]{{16}})\.json"
)


class ShippedManifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A manifest's object: the manifest, and the key of its bundle."""

    #: The host that shipped it.
    host: str
    #: The bundle's key.
    key: str
    #: The JSON of the manifest's file, unchanged.
    manifest: Any
    #: The key of the file with left-over events; None for none.
    rest: str | None = None
    #: The JSON of the seal's file, unchanged; None if the bundle is not sealed.
    seal: Any = None

    @property
    def text(self) -> bytes:
        """The content of the manifest's file."""
        return msgspec.json.format(msgspec.json.encode(self.manifest), indent=2) + b"\n"


class ManifestKey(NamedTuple):
    """The parts of a manifest's key."""

    #: YYYY-MM-DD, in UTC.
    date: str
    #: The host's name as a file name.
    host: str
    #: The name of the bundle's file without its suffixes.
    stem: str
    #: The first 16 digits of the manifest's SHA-256.
    digits: str


def object_key(file_sha256: str, *, compressed: bool) -> str:
    """Return the key of a bundle, given the SHA-256 of its file in hex."""
    suffix = BUNDLE_SUFFIX + (COMPRESSED_SUFFIX if compressed else "")
    return f"{OBJECTS}/{file_sha256[:2]}/{file_sha256}{suffix}"


def sha256_of(key: str) -> str | None:
    """Return the SHA-256 of a bundle's file, in hex, from its key; None if it is not a bundle's key."""
    match = _OBJECT.fullmatch(key)
    return None if match is None else match["sha256"]


def rest_key(file_sha256: str) -> str:
    """Return the key of a file with events that were left over, given its SHA-256 in hex."""
    return f"{OBJECTS}/{file_sha256[:2]}/{file_sha256}{REST_SUFFIX}"


def sha256_of_rest(key: str) -> str | None:
    """Return the SHA-256 of a file with events that were left over, in hex, from its key; None for another key."""
    match = _REST.fullmatch(key)
    return None if match is None else match["sha256"]


def manifest_key(manifest: Manifest, manifest_sha256: str, stem: str, host: str) -> str:
    """Return the key of a bundle's manifest.

    Args:
        manifest: the manifest.
        manifest_sha256: SHA-256 of its file, in hex.
        stem: the name of the bundle's file without its suffixes (``bundle_stem``).
        host: the name of the host.
    """
    return f"{MANIFESTS}/date={_date(manifest.ended_at)}/host={safe_name(host)}/{stem}.{manifest_sha256[:16]}.json"


def parse_manifest_key(key: str) -> ManifestKey | None:
    """Return the parts of a manifest's key; None if it is not one."""
    match = _MANIFEST.fullmatch(key)
    return None if match is None else ManifestKey(match["date"], match["host"], match["stem"], match["digits"])


def encode_shipped_manifest(
    host: str, key: str, manifest: bytes, rest: str | None = None, seal: bytes | None = None
) -> bytes:
    """Return the content of a manifest's object.

    Args:
        host: the name of the host.
        key: the bundle's key.
        manifest: the content of the manifest's file.
        rest: the key of the events that were left over.
        seal: the content of the seal's file.
    """
    compact = msgspec.Raw(msgspec.json.format(manifest, indent=-1))
    sealed = None if seal is None else msgspec.Raw(msgspec.json.format(seal, indent=-1))
    return msgspec.json.encode(ShippedManifest(host, key, compact, rest, sealed)) + b"\n"


def decode_shipped_manifest(text: bytes) -> ShippedManifest:
    """Decode a manifest's object; the manifest is a dictionary, with the fields of any version.

    Raises:
        ValueError: it is not a manifest's object.
    """
    found = msgspec.json.decode(text, type=ShippedManifest)
    if not isinstance(found.manifest, dict):
        raise ValueError("its `manifest` is not an object")  # noqa: TRY004 - as for anything else that is wrong with it
    return found


def _date(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return _NO_DATE
    return (found if found.tzinfo is None else found.astimezone(UTC)).date().isoformat()
