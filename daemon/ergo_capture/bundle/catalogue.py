"""List the bundles of a state directory, as their manifests describe them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import BUNDLE_SUFFIX, COMPRESSED_SUFFIX, MANIFEST_SUFFIX, manifest_path, other_form
from ergo_capture.bundle.proof import difference_from
from ergo_capture.errors import ErgoCaptureError

#: Inode, time of change in ns and size in bytes of each file: tells whether they are the same as before.
_Signature = tuple[tuple[int, int, int], ...]


def _signature(path: str | Path) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle file, as its manifest and its directory entry describe it."""

    path: Path
    #: The graph's name; without a manifest, the directory's.
    graph: str
    #: Bytes of the file.
    size: int
    #: ``Manifest.for_listing``, unless the catalogue keeps whole manifests.
    manifest: Manifest | None = field(default=None, compare=False)
    #: The time at which its part of the session ended.
    ended_at: datetime | None = None
    #: The reason why it is not a finished bundle; None if it is one.
    problem: str | None = None
    #: Whether the reason is that the file or the manifest is unsound.
    is_unsound: bool = False
    #: The file system that it is on.
    device: int = 0
    #: Signature of its manifest and its bundle file when they were listed.
    seen: _Signature = field(default=(), compare=False)

    @property
    def sequence(self) -> int:
        """Its place in the order of publication; 0 for bundles without a number, which are older."""
        return 0 if self.manifest is None or self.manifest.sequence is None else self.manifest.sequence

    @property
    def is_still_there(self) -> bool:
        """Whether its files are still those that were listed; it may have been published again or removed."""
        try:
            return bool(self.seen) and self.seen == tuple(map(_signature, (manifest_path(self.path), self.path)))
        except FileNotFoundError:
            return False


class Catalogue:
    """The bundles in a directory ``GRAPH/SESSION.capture.json``.

    Manifests that did not change since the last ``read`` are not read again: 30 us a bundle instead of 160.

    Args:
        directory: the directory.
        whole: whether to keep whole manifests, for output: 5 KB a bundle, with a context store much more, instead of 2.
    """

    def __init__(self, directory: Path, *, whole: bool = False) -> None:
        self.directory = directory
        self._whole = whole
        self._known: dict[str, tuple[_Signature, StoredBundle | None]] = {}

    def read(self) -> list[StoredBundle]:
        """Return the bundles, the oldest first; snapshots of running sessions come last.

        Raises:
            ErgoCaptureError: a directory cannot be read.
        """
        known: dict[str, tuple[_Signature, StoredBundle | None]] = {}
        bare: list[StoredBundle] = []
        try:
            met = set()
            for folder in sorted(os.scandir(self.directory), key=lambda entry: entry.is_symlink()):
                # A graph's directory may be a link to one on a larger disk, or to another graph's.
                if folder.is_dir() and (identity := _identity(folder)) not in met:
                    met.add(identity)
                    # Skip root's lost+found, where the bundles have a disk of their own.
                    with suppress(PermissionError):
                        self._read_folder(Path(folder.path), known, bare)
        except OSError as error:
            raise ErgoCaptureError(
                f"list bundles in '{error.filename or self.directory}': {error.strerror or error}",
                op="list bundles",
                path=self.directory,
                hint="name the state directory of a daemon, as a user who may read it",
            ) from error
        self._known = known
        found = [bundle for _, bundle in known.values() if bundle is not None] + bare
        return sorted(found, key=order_of)

    def _read_folder(
        self, folder: Path, known: dict[str, tuple[_Signature, StoredBundle | None]], bare: list[StoredBundle]
    ) -> None:
        files = {entry.name: entry for entry in os.scandir(folder)}
        described = set()
        for name, entry in files.items():
            if name.endswith(MANIFEST_SUFFIX):
                plain = name.removesuffix(MANIFEST_SUFFIX) + BUNDLE_SUFFIX
                forms = [files[form] for form in (plain, plain + COMPRESSED_SUFFIX) if form in files]
                try:
                    signature = tuple(_signature(file.path) for file in (entry, *forms))
                    before = self._known.get(entry.path)
                    if before is None or before[0] != signature:
                        found = _described(Path(entry.path), [form.name for form in forms], whole=self._whole)
                        # Keep one of two equal signatures.
                        before = (found.seen if found is not None and found.seen == signature else signature), found
                except FileNotFoundError:
                    # It was removed meanwhile.
                    continue
                known[entry.path] = before
                if before[1] is not None:
                    described.add(before[1].path.name)
        for name, entry in files.items():
            if name.endswith((BUNDLE_SUFFIX, BUNDLE_SUFFIX + COMPRESSED_SUFFIX)) and name not in described:
                # It may be removed meanwhile.
                with suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    bare.append(StoredBundle(folder / name, folder.name, size, problem="no manifest"))


def bundle_at(path: Path) -> StoredBundle:
    """Return a bundle file as the manifest beside it describes it.

    Raises:
        OSError: the file or the manifest cannot be read.
    """
    size = path.lstat().st_size
    if not os.path.lexists(manifest_path(path)):
        return StoredBundle(path, path.parent.name, size, problem="no manifest")
    found = _described(manifest_path(path), [path.name])
    assert found is not None
    return found


def _described(path: Path, forms: list[str], *, whole: bool = False) -> StoredBundle | None:
    """Return the bundle of a manifest, given the names of its files that exist; None where there are none."""
    if not forms:
        return None
    marked = _signature(path)
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        raise
    except (ManifestError, OSError):
        bundle = path.with_name(forms[0])
        status = bundle.lstat()
        return StoredBundle(
            bundle,
            path.parent.name,
            status.st_size,
            problem="manifest unreadable",
            is_unsound=True,
            device=status.st_dev,
            seen=(marked, _signature(bundle)),
        )
    # A manifest must not refer to any file but the one beside it, which may have been renamed with it.
    bundle = path.with_name(manifest.bundle if manifest.bundle in forms else forms[0])
    status = bundle.lstat()
    ended_at = _time(manifest.ended_at)
    problem: str | None = None
    if not manifest.is_final:
        problem = "session goes on"
    elif not stat.S_ISREG(status.st_mode):
        problem = "not a plain file"
    elif status.st_size != manifest.stored[0] and not _is_other_form(bundle, manifest):
        problem = f"{status.st_size} bytes, and {manifest.stored[0]} by its manifest"
    elif ended_at is None:
        problem = "manifest says no time of its end"
    return StoredBundle(
        bundle,
        manifest.graph,
        status.st_size,
        manifest if whole else manifest.for_listing(),
        ended_at,
        problem,
        is_unsound=problem is not None and manifest.is_final,
        device=status.st_dev,
        seen=(marked, _signature(bundle)),
    )


_UNKNOWN_TIME: Final = datetime.min.replace(tzinfo=UTC)


def order_of(bundle: StoredBundle) -> tuple[bool, int, datetime, str]:
    """Return the sort key of a bundle: its number, or without one the time of its end.

    A snapshot of a running session is newer than every finished bundle. The path comes last, to make the order total.
    """
    goes_on = bundle.manifest is not None and not bundle.manifest.is_final
    # Ignore the time of numbered bundles: the clock may have been wrong.
    ended_at = None if bundle.sequence else bundle.ended_at
    return goes_on, bundle.sequence, ended_at or _UNKNOWN_TIME, str(bundle.path)


def _identity(folder: os.DirEntry[str]) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_other_form(bundle: Path, manifest: Manifest) -> bool:
    """Return whether a file was compressed or decompressed after its manifest was written."""
    return bundle.name.endswith(COMPRESSED_SUFFIX) != (manifest.compression != "none")


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def find_published(recorded: Path, bundles: Path) -> Path | None:
    """Return the current path of a published bundle, compressed or not; None if it is not found.

    Args:
        recorded: the path at which it was published.
        bundles: the directory of bundles beside its journal; both may have been moved.
    """
    for path in (recorded, bundles / recorded.parent.name / recorded.name):
        for form in (path, other_form(path)):
            if form.is_file():
                return form
    return None


def difference_from_manifest(bundle: StoredBundle) -> str | None:
    """Read a finished bundle's file and compare it with its manifest; return what is wrong, or None.

    Raises:
        OSError: the file cannot be read.
    """
    if bundle.problem is not None or bundle.manifest is None:
        return bundle.problem or "no manifest"
    # Do not follow a link: the file that is read must be the one that would be deleted.
    return difference_from(bundle.path, bundle.manifest, follow=False)
