"""Compare a bundle's file with the manifest beside it: by its content, or only by its size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import COMPRESSED_SUFFIX, manifest_path
from ergo_capture.bundle.reader import meter
from ergo_capture.bundle.reader.opening import is_compressed, open_binary
from ergo_capture.plain_file import open_plain

_READ_BYTES: Final = 1 << 20


#: How many times a bundle that is published again meanwhile is compared.
_LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of comparing a bundle with the manifest beside it."""

    #: The manifest's path.
    path: Path
    #: The manifest; None if the file is not one.
    manifest: Manifest | None
    #: The reason why the two do not belong together; None if they do.
    problem: str | None = None
    #: The one that is not trusted: ``bundle`` or ``manifest``; None if both are.
    suspect: str | None = None

    @property
    def in_words(self) -> str:
        """The problem as a sentence."""
        if self.suspect == "bundle":
            return f"it is not the file that its manifest was written for: {self.problem}"
        return f"the manifest beside it, '{self.path}', is not trusted: {self.problem}"


def compare_with_manifest(bundle: Path, *, only_size: bool = False) -> Comparison | None:
    """Compare a bundle's file with the manifest beside it; return None if there is no manifest.

    The manifest is not trusted if it cannot be read, or names another bundle and does not have this one's hash. If the
    two differ otherwise, the bundle is not trusted.

    Args:
        bundle: the file.
        only_size: whether to compare only the size, without reading the file.

    Raises:
        OSError: the bundle cannot be read.
    """
    path = manifest_path(bundle)
    # A pipe can be read only once.
    if path == bundle or not os.path.lexists(path) or not bundle.is_file():
        return None
    for _ in range(_LOOKS):
        before = _signatures(path, bundle)
        found = _compare(bundle, path, size_difference_from if only_size else difference_from)
        # Compare again if a snapshot was published meanwhile: the bundle is replaced before the manifest.
        if found.problem is None or _signatures(path, bundle) == before:
            break
    return found


def _compare(bundle: Path, path: Path, difference_of: Callable[[Path, Manifest], str | None]) -> Comparison:
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        reason = "it is empty" if not path.stat().st_size else error.message.partition(f"'{path}': ")[2]
        return Comparison(path, None, reason, "manifest")
    except OSError as error:
        return Comparison(path, None, error.strerror or str(error), "manifest")
    difference = difference_of(bundle, manifest)
    if difference is None:
        return Comparison(path, manifest)
    if _plain(manifest.bundle) != _plain(bundle.name):
        return Comparison(path, manifest, f"it is that of another bundle, '{manifest.bundle}'", "manifest")
    return Comparison(path, manifest, difference, "bundle")


def _plain(name: str) -> str:
    return name.removesuffix(COMPRESSED_SUFFIX)


def _signatures(*paths: Path) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def size_difference_from(path: Path, manifest: Manifest) -> str | None:
    """Return the difference of a bundle file's size from its manifest, or None; the text is not read.

    The size of a file that was compressed since says nothing.

    Raises:
        OSError: the file cannot be read.
    """
    size, expected = path.stat().st_size, manifest.stored[0]
    if size != expected and is_compressed(path) != (manifest.compression != "none"):
        expected = manifest.bytes if manifest.compression != "none" else size
    return None if size == expected else f"it has {size} bytes, and {expected} by its manifest"


def difference_from(path: Path, manifest: Manifest, *, follow: bool = True) -> str | None:
    """Read a bundle's file; return the difference from its manifest, or None.

    Size and SHA-256 of the file are compared. A file that was compressed or decompressed since is the same bundle if
    its text has the manifest's size and SHA-256.

    Args:
        path: the file.
        manifest: its manifest.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: the file cannot be read.
    """
    with open_plain(path, follow=follow) as file:
        meter.begin("hashing", os.fstat(file.fileno()).st_size)
        found = _size_and_digest(file)
    if found == manifest.stored:
        return None
    with suppress(OSError), open_binary(path) as file:
        text = _size_and_digest(file)
        was_compressed = manifest.compression != "none"
        if (text != found) != was_compressed and text == (manifest.bytes, manifest.sha256):
            return None
    return size_difference_from(path, manifest) or "its SHA-256 differs from its manifest"


def _size_and_digest(file: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while block := file.read(_READ_BYTES):
        size += len(block)
        meter.advance(len(block))
        digest.update(block)
    return size, digest.hexdigest()
