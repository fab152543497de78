"""The bundles that are in a state directory, as their manifests tell.

Owns: StoredBundle, Catalogue, and the check that a file is what its manifest says.
Not here: which of them go (``retention.py``), deleting them (``server/retention.py``).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ergo_capture.capture.manifest import (
    BUNDLE_SUFFIX,
    MANIFEST_SUFFIX,
    Manifest,
    ManifestError,
    other_form,
    read_manifest,
)
from ergo_capture.capture.opening import COMPRESSED_SUFFIX
from ergo_capture.errors import ErgoCaptureError

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle file, and what is known of it without reading it."""

    path: Path
    #: The graph's name; without a manifest, that of the directory.
    graph: str
    #: Bytes of the file.
    size: int
    manifest: Manifest | None = field(default=None, compare=False)
    #: When its part of the session ended.
    ended_at: datetime | None = None
    #: Why it is not a finished bundle, in words; None where it is one.
    trouble: str | None = None


class Catalogue:
    """The bundles in a directory ``GRAPH/SESSION.capture.json``.

    Manifests are read once: each is written whole and never changed in place.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[Path, tuple[tuple[int, int, int], Manifest | ManifestError]] = {}
        self._seen: set[Path] = set()

    def read(self) -> list[StoredBundle]:
        """What is there now, the oldest first.

        Raises:
            ErgoCaptureError: a directory cannot be read.
        """
        self._seen.clear()
        try:
            found = [bundle for folder in self._folders() for bundle in self._in(folder)]
        except OSError as error:
            raise ErgoCaptureError(
                f"list bundles in '{error.filename or self.directory}': {error.strerror or error}",
                op="list bundles",
                path=self.directory,
                hint="name the state directory of a daemon, as a user who may read it",
            ) from error
        self._known = {path: known for path, known in self._known.items() if path in self._seen}
        # Why by the name too: so that the order is the same wherever it is looked at.
        return sorted(found, key=lambda bundle: (bundle.ended_at or _EVER, bundle.path))

    def _folders(self) -> list[Path]:
        return [Path(entry.path) for entry in os.scandir(self.directory) if entry.is_dir(follow_symlinks=False)]

    def _in(self, folder: Path) -> Iterator[StoredBundle]:
        files = {entry.name: entry for entry in os.scandir(folder)}
        described = set()
        for name in files:
            if name.endswith(MANIFEST_SUFFIX):
                bundle = self._described(folder / name)
                if bundle is not None:
                    described.add(bundle.path.name)
                    yield bundle
        for name, entry in files.items():
            if name.endswith((BUNDLE_SUFFIX, BUNDLE_SUFFIX + COMPRESSED_SUFFIX)) and name not in described:
                try:
                    size = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    # It went while we looked.
                    continue
                yield StoredBundle(folder / name, folder.name, size, trouble="no manifest")

    def _described(self, path: Path) -> StoredBundle | None:
        """The bundle of a manifest; None where the manifest or the bundle is gone."""
        try:
            manifest = self._manifest(path)
        except FileNotFoundError:
            return None
        plain = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX) + BUNDLE_SUFFIX)
        if isinstance(manifest, ManifestError):
            there = [form for form in (plain, other_form(plain)) if form.exists()]
            if not there:
                return None
            return StoredBundle(there[0], path.parent.name, there[0].lstat().st_size, trouble="manifest unreadable")
        named = {form.name: form for form in (plain, other_form(plain))}
        # Why looked up: a manifest must not be able to point at any file but the one beside it.
        bundle = named.get(manifest.bundle, plain)
        trouble: str | None = None
        if manifest.bundle not in named:
            trouble = "manifest names another file"
        elif not manifest.is_final:
            trouble = "session goes on"
        try:
            status = bundle.lstat()
        except FileNotFoundError:
            return None
        ended_at = _time(manifest.ended_at)
        if trouble is None:
            if not stat.S_ISREG(status.st_mode):
                trouble = "not a plain file"
            elif status.st_size != manifest.stored[0]:
                trouble = f"{status.st_size} bytes, and {manifest.stored[0]} by its manifest"
            elif ended_at is None:
                trouble = "manifest says no time of its end"
        return StoredBundle(bundle, manifest.graph, status.st_size, manifest, ended_at, trouble)

    def _manifest(self, path: Path) -> Manifest | ManifestError:
        status = path.lstat()
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        self._seen.add(path)
        known = self._known.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        try:
            found: Manifest | ManifestError = read_manifest(path)
        except ManifestError as error:
            found = error
        self._known[path] = (signature, found)
        return found

    def __repr__(self) -> str:
        return f"<Catalogue {self.directory}, {len(self._known)} manifests known>"


_EVER: Final = datetime.min.replace(tzinfo=UTC)


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def difference_from_manifest(bundle: StoredBundle) -> str | None:
    """What is wrong with a finished bundle's file, read whole and compared with its manifest; None where nothing is.

    Raises:
        OSError: the file cannot be read.
    """
    if bundle.trouble is not None or bundle.manifest is None:
        return bundle.trouble or "no manifest"
    size, digest = 0, hashlib.sha256()
    fd = os.open(bundle.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        while block := file.read(_READ_BYTES):
            size += len(block)
            digest.update(block)
    if (size, digest.hexdigest()) != bundle.manifest.stored:
        return "its bytes are not those that its manifest vouches for"
    return None
