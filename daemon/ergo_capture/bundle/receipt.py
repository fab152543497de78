"""The receipt beside a bundle, ``SESSION.shipped.TARGET.json``: proof that a store holds the bundle and its manifest.

A receipt is written last, after the store's copy was verified. It is valid only while it matches the bundle's file and
manifest on disk, and the target as configured. Without a valid receipt the bundle is shipped again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.names import COMPRESSED_SUFFIX, bundle_stem, manifest_path, seal_path
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.plain_file import open_plain

RECEIPT_FORMAT: Final = "ergo-capture-receipt.v1"
#: Largest receipt that is read, in bytes.
_MAX_BYTES: Final = 64 << 10
_MARK: Final = ".shipped."
_NAME: Final = re.compile(rf"(?P<stem>.+){re.escape(_MARK)}(?P<target>[a-z0-9][a-z0-9_-]*)\.json")


class Place(NamedTuple):
    """The identity of a target's store: two targets with equal places ship to the same store."""

    url: str
    endpoint: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a receipt."""

    format: str = RECEIPT_FORMAT
    target: str
    url: str
    endpoint: str = ""
    #: Key, size and SHA-256 of the bundle's file.
    key: str
    bytes: int
    file_sha256: str
    #: Key of the manifest's object, and SHA-256 of the manifest's file.
    manifest_key: str
    manifest_sha256: str
    #: ``read``: it was read back and hashed; ``head``: its size and the store's checksum were compared.
    verified: str
    #: RFC 3339 in UTC.
    shipped_at: str
    #: SHA-256 of the seal's file, which is in the manifest's object; empty if the bundle has no seal.
    seal_sha256: str = ""
    #: The configured prefix of its announcement's subject; empty until a stream has acknowledged the announcement.
    announced: str = ""

    def proves(self, bundle: StoredBundle, manifest_sha256: str, place: Place) -> bool:
        """Return whether the receipt proves that a target's store holds the bundle as it is on disk.

        Args:
            bundle: the bundle, as it was listed.
            manifest_sha256: SHA-256 of its manifest's file, in hex.
            place: the target's store, as configured.
        """
        if bundle.problem is not None or bundle.manifest is None:
            return False
        if (self.format, self.url, self.endpoint) != (RECEIPT_FORMAT, *place):
            return False
        if (self.bytes, self.manifest_sha256) != (bundle.size, manifest_sha256):
            return False
        if is_other_form(bundle):
            # The manifest has the hash of the text only; it was compared when the bundle was sent.
            return True
        return (self.bytes, self.file_sha256) == bundle.manifest.stored


def read_seal_text(bundle: Path) -> bytes | None:
    """Return the content of the file of a bundle's seal; None if there is none, or if it is not JSON."""
    try:
        text = seal_path(bundle).read_bytes()
        msgspec.json.decode(text)
    except (OSError, ValueError, RecursionError):
        return None
    return text


def hash_seal(text: bytes | None) -> str:
    """Return the SHA-256 of a seal's file, in hex; empty if there is none."""
    return "" if text is None else hashlib.sha256(text).hexdigest()


def is_other_form(bundle: StoredBundle) -> bool:
    """Return whether a file was compressed or decompressed after its manifest was written."""
    assert bundle.manifest is not None
    return bundle.path.name.endswith(COMPRESSED_SUFFIX) != (bundle.manifest.compression != "none")


def receipt_path(bundle: Path, target: str) -> Path:
    """Return the path of a bundle's receipt from a target."""
    return bundle.with_name(f"{bundle_stem(bundle)}{_MARK}{target}.json")


def stem_of_receipt(name: str) -> str | None:
    """Return the name of a receipt's bundle without its suffixes; None for the name of another file."""
    match = _NAME.fullmatch(name)
    return None if match is None else match["stem"]


def receipts_in(directory: Path) -> dict[str, list[Path]]:
    """Return the paths of the receipts in a directory, valid or not, by the name of the bundle without its suffixes.

    Raises:
        OSError: the directory cannot be listed.
    """
    found: dict[str, list[Path]] = {}
    with os.scandir(directory) as entries:
        # Most names are of bundles and manifests: the regular expression costs ten times as much as this look.
        names = sorted(entry.name for entry in entries if _MARK in entry.name)
    for name in names:
        if (stem := stem_of_receipt(name)) is not None:
            found.setdefault(stem, []).append(directory / name)
    return found


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the file's content."""
    return msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n"


def read_receipt(path: Path) -> Receipt | None:
    """Return a receipt; None if there is none, or if it cannot be read: the bundle is then shipped again."""
    try:
        with open_plain(path) as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Receipt)
    except (OSError, ValueError, RecursionError):
        return None


def valid_receipt(bundle: StoredBundle, target: str, place: Place) -> Receipt | None:
    """Return a bundle's valid receipt from a target; None if there is none.

    Args:
        bundle: the bundle, as it was listed.
        target: the target's name.
        place: the target's store, as configured.
    """
    receipt = read_receipt(receipt_path(bundle.path, target))
    if receipt is None or receipt.target != target:
        return None
    try:
        manifest_sha256 = hashlib.sha256(manifest_path(bundle.path).read_bytes()).hexdigest()
    except OSError:
        return None
    if not receipt.proves(bundle, manifest_sha256, place):
        return None
    return receipt if receipt.seal_sha256 == hash_seal(read_seal_text(bundle.path)) else None


class Receipts:
    """Tells from receipts which targets hold a bundle. Files that have not changed are not read again.

    Args:
        places: the stores of the targets that count, by name of the target.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = dict(places)
        #: By bundle and target: the signatures of the files, and ``announced`` of the receipt; None if it is not valid.
        self._known: dict[tuple[Path, str], tuple[Any, str | None]] = {}

    def holders(self, bundle: StoredBundle, targets: Iterable[str] | None = None) -> frozenset[str]:
        """Return the names of the targets that hold a bundle; of those given, or of all."""
        names = self.places if targets is None else targets
        return frozenset(name for name in names if self._announced(bundle, name) is not None)

    def unannounced(self, bundle: StoredBundle, subject: str) -> frozenset[str]:
        """Return the names of the targets that hold a bundle and whose receipts do not say that it was announced.

        Args:
            bundle: the bundle.
            subject: the configured prefix of the subjects of announcements.
        """
        return frozenset(name for name in self.places if self._announced(bundle, name) not in (None, subject))

    def _announced(self, bundle: StoredBundle, target: str) -> str | None:
        path = receipt_path(bundle.path, target)
        try:
            status = os.lstat(path)
        except OSError:
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_size, bundle.seen, _seen(seal_path(bundle.path)))
        before = self._known.get((bundle.path, target))
        if before is None or before[0] != signature:
            place = self.places.get(target)
            receipt = None if place is None else valid_receipt(bundle, target, place)
            announced = None if receipt is None else sys.intern(receipt.announced)
            before = self._known[bundle.path, target] = signature, announced
        return before[1]

    def forget_gone(self, bundles: Iterable[StoredBundle]) -> None:
        """Forget bundles that are not among those given."""
        paths = {bundle.path for bundle in bundles}
        self._known = {key: value for key, value in self._known.items() if key[0] in paths}


def _seen(path: Path) -> tuple[int, int] | None:
    """Return the time of change and the size of a file, which change with its content; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def place_of(target: TargetConfig) -> Place:
    """Return the place of a target, from its settings."""
    return Place(target.url.rstrip("/"), target.endpoint)
