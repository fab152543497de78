"""Prove a bundle's file by the manifest beside it: one answer for ``verify``, ``doctor`` and retention."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.reader.opening import open_binary

_READ_BYTES: Final = 1 << 20


def difference_from(path: Path, manifest: Manifest, *, follow: bool = True) -> str | None:
    """Read a bundle's file; return what differs from its manifest, None where nothing does.

    Size and SHA-256 of the file count. A file that was compressed or decompressed since is the same bundle if its text
    is the one that the manifest describes.

    Args:
        path: the file.
        manifest: its manifest.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: the file cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with io.FileIO(os.open(path, flags)) as file:
        found = _size_and_digest(file)
    if found == manifest.stored:
        return None
    with suppress(OSError), open_binary(path) as file:
        text = _size_and_digest(file)
        is_compressed, was_compressed = text != found, manifest.compression != "none"
        if is_compressed != was_compressed and text == (manifest.bytes, manifest.sha256):
            return None
    size, expected = found[0], manifest.stored[0]
    if size != expected:
        return f"it has {size} bytes, and {expected} by its manifest"
    return "its SHA-256 differs from its manifest"


def _size_and_digest(file: IO[bytes] | io.RawIOBase) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while block := file.read(_READ_BYTES):
        size += len(block)
        digest.update(block)
    return size, digest.hexdigest()
